"""Batch norm: its running statistics kept out of the teacher's pass and measured anew for the quantized network, its
batch statistics taken over all processes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from spequant.calibration.batches import check_batches, run_model
from spequant.functional import all_reduce
from spequant.processes import average_over_processes, world
from spequant.recomputation import entered_again

Mode = Literal["leave", "update", "eval"]
MODES: tuple[Mode, ...] = ("leave", "update", "eval")


@contextmanager
def batch_norm_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """What batch norm does inside: "leave": batch statistics, and running ones as before afterwards; "update": as in
    any training forward; "eval": running statistics. A model in eval mode is not touched.

    "leave" puts copies back, so that a compiled model runs the very graph of the student's pass: with
    `track_running_stats` switched it would need one of its own; with momentum 0 it would still count batches, and one
    Inf would turn the running statistics to NaN.
    """
    if mode not in MODES:
        raise ValueError(f"batch_norm is {mode!r}; expected one of {', '.join(map(repr, MODES))}")
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    running = [b for m in norms for b in m.buffers(recurse=False)] if mode == "leave" else []
    kept = [b.detach().clone() for b in running]
    try:
        if mode == "eval":
            for m in norms:
                m.training = False
        with entered_again(lambda: batch_norm_mode(model, mode)):
            yield
    finally:
        for m in norms:
            m.training = True
        if running:
            with torch.no_grad():
                torch._foreach_copy_(running, kept)  # type: ignore[attr-defined]


@contextmanager
def batch_norm_untracked(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm in train mode takes batch statistics and neither reads nor writes running ones: for passes
    whose gradient is wanted beside the student's, which autograd refuses once running statistics were put back."""
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    try:
        for m in norms:
            m.track_running_stats = False
        with entered_again(lambda: batch_norm_untracked(model)):
            yield
    finally:
        for m in norms:
            m.track_running_stats = True


@contextmanager
def modes_kept(model: nn.Module) -> Iterator[None]:
    """At the end each module is in train or eval mode as it was, those that the user froze apart, too."""
    before = [(m, m.training) for m in model.modules()]
    try:
        yield
    finally:
        for m, training in before:
            m.training = training


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Dropout and stochastic depth off, also in train mode."""
    with ExitStack() as undo:
        for m in model.modules():
            attribute = "drop_prob" if hasattr(m, "drop_prob") else "p"
            if isinstance(m, _DropoutNd) or type(m).__name__ in ("StochasticDepth", "DropPath"):
                undo.callback(setattr, m, attribute, getattr(m, attribute))
                setattr(m, attribute, 0.0)
        yield


def frozen(norm: _BatchNorm, model: nn.Module) -> bool:
    """Whether the user of `model` froze the batch norm `norm` in it: it is in eval mode while `model` is not, or none
    of its parameters learns, or its momentum is 0."""
    parameters = list(norm.parameters(recurse=False))
    still = bool(parameters) and not any(p.requires_grad for p in parameters)
    return still or norm.momentum == 0 or (model.training and not norm.training)


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] = run_model
) -> None:
    """Replace running statistics by their mean over `batches`, each forwarded by `run(model, batch)`, dropout off.

    The model runs at the precision in use; its modules' modes are kept. Batch norm that is `frozen` keeps its
    statistics and computes with them, and so does what ran on no batch. Without batch norm: nothing happens.
    ValueError: no batches, or one of a single sample, which has no variance.
    Several processes: each gives batches of its own, equally many, and all end with the mean over everyone's.
    """
    check_batches(batches, "batches")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    norms = [m for m in norms if not frozen(m, model)]
    running = [b for m in norms for b in m.buffers(recurse=False)]
    before, momenta = [b.clone() for b in running], [m.momentum for m in norms]
    count = 0
    try:
        with dropout_off(model), modes_kept(model):
            still = [m for m in model.modules() if isinstance(m, _BatchNorm) and m not in norms]
            model.train()
            for m in still:
                m.eval()
            for m in norms:
                m.momentum = None  # the mean over all batches
                m.num_batches_tracked.zero_()  # type: ignore[union-attr]
            for count, batch in enumerate(batches, start=1):
                _run_one(model, batch, count, run)
        if not count:
            raise ValueError(
                "batches are empty (an iterator that was read before?); expected one at least to measure on"
            )
    except BaseException:
        for b, value in zip(running, before, strict=True):
            b.copy_(value)
        raise
    finally:
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
    average_over_processes(running)


def _run_one(model: nn.Module, batch: Any, number: int, run: Callable[[nn.Module, Any], Any]) -> None:
    try:
        run(model, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"batch {number} holds a single sample, as the last one may: batch norm has no variance of it. Leave it "
            "out (drop_last=True of a DataLoader), or say reestimate=False"
        ) from error


class SyncBatchNorm(_BatchNorm):
    """Batch norm over the batches of all processes together, on any device; alone, or in eval mode, plain batch norm.

    torch's own class of this name runs on GPUs alone. Mean and variance in fp32, two sums over processes:
    y = (x - mean) / sqrt(var + eps) * weight + bias. Input (batch, channels, ...).
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input has shape {tuple(input.shape)}; expected (batch, channels, ...)")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        values = x.new_tensor([input.numel() // input.shape[1]])
        sums = all_reduce(torch.cat([x.sum(axes), values]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        var = all_reduce(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * count / (count - 1))
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.num_batches_tracked.reciprocal() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)


PLAIN = (_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward)
"""What batch norm does and nothing else; a subclass with another forward does more."""


def synchronise_batch_norm(model: nn.Module) -> None:
    """Let every batch norm in `model` take its batch statistics over all processes: replaced in place, the parameters
    and buffers themselves kept. On a GPU torch's own class, elsewhere ours.

    ValueError: one with a forward of its own, which would be lost (timm's has an activation inside)."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module).forward not in PLAIN:
            raise ValueError(
                f"{name} is a {type(module).__name__}, which does more than batch norm and cannot be synchronised: "
                "train with sync_batch_norm False (--train.no-sync-batch-norm)"
            )
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm | nn.SyncBatchNorm):
                tensor = next(child.buffers(recurse=False), None)
                on_gpu = tensor is not None and tensor.device.type == "cuda"
                made = nn.SyncBatchNorm if on_gpu else SyncBatchNorm
                new = made(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                new._parameters, new._buffers = child._parameters, child._buffers
                setattr(parent, name, new.train(child.training))
