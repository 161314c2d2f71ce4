"""Iterative weight freezing, which watches the weights after each optimizer step.

The frozen codes are stored in the `Quantizer` of the weight.

References:
    Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training" (arXiv 2203.11086), algorithm 1.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from spequant.layers import QuantizedLayer, weight_quantizers
from spequant.quantizers import Quantizer

MAX_BITS = 4
"""Weights of more bits are not watched: their codes change all the time, and the network loses nothing by that."""


class OscillationFreezer:
    """Freezes the weights of `model` that keep changing between two codes; call `step()` after each optimizer step.

    For each weight of 4 bits or fewer, with its code c, at every step:

        o = 1 where c changes, in the direction opposite to that of its last change, else 0
        f <- m o + (1 - m) f          how often it oscillates
        e <- m c + (1 - m) e
        where f > threshold, the weight is frozen from now on, at the code round(e)

    The quantizer stores the frozen code, so that it is saved with the model. A range that changes, because it is
    trained (LSQ) or computed from the weights (SAWB), changes only the value of that code. The float weight gets no
    gradient any more, and changes by momentum and weight decay are undone at the next step. A range that is computed
    from the weights therefore sees it unchanged.

    A step reads nothing back from the device. Processes with the same weights freeze the same weights.

    Args:
        model: A prepared and calibrated network.
        threshold: Frequency of oscillation above which a weight is frozen, between 0 and 1. Three times `momentum` or
            more, so that a single oscillation freezes nothing. Or a function of the number of the step, from 1, for a
            threshold that decreases in training (`annealed`); the authors' goes from .1 to .01 at 3 and 4 bits.
        momentum: m, between 0 and 1; the authors' is .01.

    Raises:
        ValueError: An argument is out of range, no weight has 4 bits or fewer, one of them is not calibrated, or one is
            standardised before it is quantized.
    """

    def __init__(self, model: nn.Module, *, threshold: float | Callable[[int], float], momentum: float = 0.01):
        if not 0 < momentum < 1:
            raise ValueError(f"momentum is {momentum!r}; expected a number between 0 and 1, e.g. 0.01")
        if not callable(threshold) and not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold!r}; expected a number between 0 and 1, e.g. {3 * momentum:g}")
        self.threshold, self.momentum = threshold, momentum
        self.watched: dict[str, _Watched] = {}
        names = {quantizer: name for name, quantizer in weight_quantizers(model).items()}
        for module in model.modules():
            if isinstance(module, QuantizedLayer) and module.weight_quantizer is not None:
                quantizer, weight = module.weight_quantizer, module.layer.weight
                name = names[quantizer]
                if module.float_weight is not weight:
                    raise ValueError(
                        f"{name}: its weight is standardised before it is quantized, and cannot be frozen; "
                        "train this network without freezing"
                    )
                if (quantizer.bits or 32) <= MAX_BITS and name not in self.watched:
                    self.watched[name] = _Watched(quantizer, weight)  # type: ignore[arg-type]
        if not self.watched:
            raise ValueError(f"model holds no quantized weight of {MAX_BITS} bits or fewer: nothing to freeze")

    @torch.no_grad()
    def step(self, number: int = 0) -> None:
        """Restore the frozen weights after an optimizer step, and freeze further weights that oscillate.

        Args:
            number: Number of the step, from 1; only a threshold that is a function reads it.
        """
        threshold = self.threshold(number) if callable(self.threshold) else self.threshold
        for watched in self.watched.values():
            watched.step(threshold, self.momentum)

    def frozen_share(self) -> float:
        """Return the share of the watched weights that are frozen, 0 to 1, read from the device."""
        frozen = torch.stack([w.state["frozen"].sum() for w in self.watched.values()]).sum()
        return float(frozen) / sum(w.weight.numel() for w in self.watched.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Return {"LAYER.KEY": tensor}; the tensors are not copied."""
        return {f"{name}.{key}": t for name, w in self.watched.items() for key, t in w.state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from a `state_dict()`.

        Args:
            state: What `state_dict` of a freezer of the same model returned.

        Raises:
            ValueError: Its names or shapes are not those of this model.
        """
        current = self.state_dict()
        unknown, absent = sorted(set(state) - set(current)), sorted(set(current) - set(state))
        if unknown or absent:
            raise ValueError(f"the freezer's state is of another model: it lacks {absent} and has {unknown} too much")
        for name, tensor in current.items():
            if state[name].shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}; expected {tuple(tensor.shape)}")
            tensor.copy_(state[name])


def make_freezer(
    model: nn.Module, first: float | None, last: float | None = None, steps: int = 1
) -> OscillationFreezer | None:
    """Return a freezer whose threshold is `first`, or goes from `first` to `last`; None if `first` is None.

    Args:
        model: Prepared and calibrated.
        first: Threshold at the start, 0 to 1.
        last: Threshold after `steps` steps, reached as in `annealed`; None: it stays the same.
        steps: Optimizer steps of the training.
    """
    if first is None:
        return None
    return OscillationFreezer(
        model, threshold=first if last is None else lambda number: annealed(first, last, number / steps)
    )


def annealed(first: float, last: float, done: float) -> float:
    """Return a threshold between `first` and `last` that decreases along half a cosine.

    Args:
        first: The threshold at the start.
        last: The threshold at the end.
        done: Share of training that is done, 0 to 1.
    """
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


class _Watched:
    """One weight that is watched, with its quantizer.

    The quantizer stores, per element, the code and whether it is frozen. `statistics` holds, per element, e and f of
    the class above, the direction of the last change (0: none yet), and the float weight, which is restored where it is
    frozen.
    """

    def __init__(self, quantizer: Quantizer, weight: Tensor):
        if not quantizer.calibrated:
            name = quantizer.name or type(quantizer).__name__
            raise ValueError(f"{name}: its range is not calibrated; call spequant.calibrate before freezing")
        self.quantizer, self.weight = quantizer, weight
        with torch.no_grad():
            codes = quantizer.encode(weight)
        if quantizer.frozen is None:
            quantizer.hold_codes(codes)
        self.statistics = {
            "average": codes,
            "direction": torch.zeros_like(codes, dtype=torch.int8),
            "frequency": torch.zeros_like(codes),
            "float": weight.detach().clone(),
        }

    @property
    def state(self) -> dict[str, Tensor]:
        codes, frozen = self.quantizer.frozen_codes, self.quantizer.frozen
        assert codes is not None and frozen is not None
        return {"codes": codes, "frozen": frozen, **self.statistics}

    def step(self, threshold: float, momentum: float) -> None:
        codes, frozen, average, direction, frequency, before = self.state.values()
        self.weight.copy_(torch.where(frozen, before, self.weight))
        before.copy_(self.weight)
        now = self.quantizer.encode(self.weight)
        turn = torch.sign(now - codes)
        frequency.lerp_((turn * direction < 0).float(), momentum)
        average.lerp_(now, momentum)
        direction.copy_(torch.where(turn == 0, direction, turn))
        new = (frequency > threshold) & ~frozen
        codes.copy_(torch.where(new, average.round(), now))
        frozen.logical_or_(new)
