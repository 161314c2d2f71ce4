"""Regression: one value or more per sample, or per pixel."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.methods.losses import DistillLoss, gaussian
from spequant.methods.tasks.task import Sums, labels_of, output_of, tensor_in

FLAT = 1e-5
"""Deviation of a teacher's values, as a share of their size, below which they count as constant."""


class Regression:
    """One value or more per sample, or per pixel.

    A batch is (inputs, targets), or a dict with "labels" and the keyword arguments of the network. Targets are numbers
    (batch,), (batch, targets), or (batch, targets, height, width) for dense ones, e.g. depth. The network returns
    values of the same shape; with one target, the axis may be missing in one of the two.

    The loss on the targets is `criterion`, by default the mean squared error. A teacher is learned from by its value:
    student and teacher are read as Gaussians of the same deviation s (`scale`), and at temperature T as Gaussians of
    the variance T s^2. The losses of methods are, with d = (student - teacher) / s, means over samples and targets:

        kl, cross_entropy   T d^2 / 2                    KL of the two (cross-entropy: but for a constant)
        cosine              T^2 (1 - exp(-d^2 / (4 T)))  1 - the cosine between their densities

    A loss of your own gets the values themselves. Figures are the mean absolute error, in the targets' unit, and R2 in
    percent, the share of the targets' variance that is explained; each the mean over targets.

    Args:
        output: Key or index of the values in the output of the model; None: the output, or `logits` in it.
        criterion: (values, targets) -> 0-dim loss, e.g. `F.mse_loss`, `F.huber_loss`, `F.l1_loss`.
        scale: s, above 0, in the targets' unit: a number, or one per target. None: the deviation of the teacher's
            values in the batch; where they are constant, their size. Of a batch of few samples it is a rough guess.

    Raises:
        ValueError: `scale` is not above 0.
    """

    def __init__(
        self,
        output: str | int | None = None,
        *,
        criterion: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
        scale: float | Sequence[float] | None = None,
    ):
        self.output, self.criterion = output, criterion
        self.scale = None if scale is None else torch.as_tensor(scale, dtype=torch.float32)
        if self.scale is not None and not bool(((self.scale > 0) & self.scale.isfinite()).all()):
            raise ValueError(f"scale is {scale!r}; expected finite deviations above 0, in the unit of the targets")

    def logits(self, model: nn.Module, batch: Any) -> Tensor:
        """Run `model` on a batch.

        Args:
            model: A network that returns values.
            batch: As described for the class.

        Returns:
            Values (batch, targets) or (batch, targets, height, width).

        Raises:
            TypeError: The model returns no tensor, or none under `output`.
            ValueError: The values have no axis of samples.
        """
        values = tensor_in(output_of(model, batch), self.output, self)
        if values.dim() == 0:
            raise ValueError("the model returned a single number; expected values (batch, targets)")
        return values.unsqueeze(1) if values.dim() in (1, 3) else values

    def loss(self, logits: Tensor, batch: Any) -> Tensor:
        """Return `criterion` of the values and the targets in fp32, 0-dim.

        Raises:
            ValueError: The targets have another shape than the values, or are no numbers.
        """
        return self.criterion(logits.float(), self._targets(logits, batch))

    def distill(self, loss: DistillLoss, student: Tensor, teacher: Tensor, batch: Any, temperature: float) -> Tensor:
        """Return the distance of the student's values to the teacher's, 0-dim; see the class.

        Raises:
            ValueError: The shapes differ, or `scale` has another number of targets.
        """
        if student.shape != teacher.shape:
            raise ValueError(
                f"the student's values have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
                "expected the same: a teacher of the same targets"
            )
        if loss not in gaussian:
            return loss(student, teacher, temperature)
        return gaussian[loss]((student.float() - teacher.float()) / self._deviation(teacher), temperature)

    def ensemble(self, passes: Sequence[Tensor], temperature: float) -> Tensor:
        """Return the mean of the values of `passes`, whatever the temperature."""
        return torch.stack([values.float() for values in passes]).mean(0)

    def meter(self) -> Sums:
        """Return a meter of `mean_absolute_error`, in the targets' unit, and `r2`, in percent."""
        return Sums(self._count, _figures)

    def _deviation(self, teacher: Tensor) -> Tensor:
        """Return s, of a shape that spreads over (batch, targets, ...)."""
        shape = (1, -1, *(1 for _ in teacher.shape[2:]))
        if self.scale is not None:
            if self.scale.dim() and self.scale.numel() != teacher.shape[1]:
                raise ValueError(
                    f"scale has {self.scale.numel()} numbers; expected {teacher.shape[1]}, one per target, or 1"
                )
            return self.scale.to(teacher.device).view(shape)
        values, axes = teacher.detach().float(), [0, *range(2, teacher.dim())]
        deviation = (values - values.mean(axes, keepdim=True)).square().mean(axes, keepdim=True).sqrt()
        size = values.square().mean(axes, keepdim=True).sqrt()
        size = torch.where(size > 0, size, torch.ones_like(size))
        return torch.where(deviation > FLAT * size, deviation, size)

    def _count(self, logits: Tensor, batch: Any) -> Tensor:
        """Return (5, targets): number, absolute errors, squared errors, targets and squared targets, summed."""
        values, targets = (x.double().transpose(0, 1).flatten(1) for x in (logits, self._targets(logits, batch)))
        errors = values - targets
        sums = torch.ones_like(targets), errors.abs(), errors.square(), targets, targets.square()
        return torch.stack([x.sum(1) for x in sums])

    def _targets(self, logits: Tensor, batch: Any) -> Tensor:
        targets = labels_of(batch)
        if targets.dim() == logits.dim() - 1 and logits.shape[1] == 1:
            targets = targets.unsqueeze(1)
        if targets.shape != logits.shape or targets.dtype == torch.bool or targets.is_complex():
            raise ValueError(
                f"targets are {targets.dtype} of shape {tuple(targets.shape)}; expected numbers of shape "
                f"{tuple(logits.shape)}, that of the values which the network returns"
            )
        return targets.float()


def _figures(sums: Tensor) -> dict[str, float]:
    number, absolute, squared, total, squares = sums
    spread = squares - total.square() / number
    figures = {"mean_absolute_error": float((absolute / number).mean())}
    if bool((spread > 0).all()):  # R2 has no meaning for a constant target
        figures["r2"] = 100 * float((1 - squared / spread).mean())
    return figures
