"""Iterative weight freezing: Nagel et al. 2022, "Overcoming Oscillations in Quantization-Aware Training" (arXiv
2203.11086), algorithm 1. Watches weights after each optimizer step; the codes it freezes are held by `Quantizer`.
"""

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from spequant.layers import QuantizedLayer
from spequant.quantizers import Quantizer

MAX_BITS = 4  # wider grids (the 8-bit ends) cross from code to code all the time and lose nothing by it


class OscillationFreezer:
    """Freezes the weights of `model` that keep changing between two codes; call `step()` after each optimizer step.

    Of each weight of 4 bits or fewer, with its code c, at every step:

        o = 1 where c changes, in the direction opposite to that of its last change, else 0
        f <- m o + (1 - m) f          how often it oscillates
        e <- m c + (1 - m) e
        where f > threshold: frozen from now on, at the code round(e)

    threshold: some three times `momentum`, m, or more, so that a single oscillation freezes nothing; or a function of
      the number of the step, which lowers it as training goes on (`annealed`; the authors: from .1 to .01 at 3 and 4
      bits, m = .01).

    It is the code that is frozen, in the quantizer, and saved with the model: a range that moves, trained (LSQ) or
    taken from the weights (SAWB), moves its value alone. Its float weight gets no gradient any more, and what momentum
    and weight decay do to it between two calls is undone: a range that is taken from the weights takes it as it was.

    Reads nothing back from the device; the same on every process that holds the same weights. ValueError: no weight of
    4 bits or fewer, or a range that is not calibrated.
    """

    def __init__(self, model: nn.Module, *, threshold: float | Callable[[int], float], momentum: float = 0.01):
        if not 0 < momentum < 1:
            raise ValueError(f"momentum is {momentum!r}; expected a number between 0 and 1, e.g. 0.01")
        if not callable(threshold) and not 0 < threshold < 1:
            raise ValueError(f"threshold is {threshold!r}; expected a number between 0 and 1, e.g. {3 * momentum:g}")
        self.threshold, self.momentum = threshold, momentum
        self.watched: dict[str, _Watched] = {}
        for module in model.modules():
            if isinstance(module, QuantizedLayer) and module.weight_quantizer is not None:
                quantizer, weight = module.weight_quantizer, module.layer.weight
                if module.float_weight is not weight:
                    raise ValueError(
                        f"{quantizer.name}: its weight is standardised before it is quantized, and cannot be frozen; "
                        "train this network without freezing"
                    )
                if (quantizer.bits or 32) <= MAX_BITS and quantizer.name not in self.watched:
                    self.watched[quantizer.name] = _Watched(quantizer, weight)  # type: ignore[arg-type]
        if not self.watched:
            raise ValueError(f"model holds no quantized weight of {MAX_BITS} bits or fewer: nothing to freeze")

    @torch.no_grad()
    def step(self, number: int = 0) -> None:
        """Take in what the optimizer did: hold the frozen weights, watch the others, freeze those that oscillate.

        number: of the step, from 1, for a threshold that changes with it.
        """
        threshold = self.threshold(number) if callable(self.threshold) else self.threshold
        for watched in self.watched.values():
            watched.step(threshold, self.momentum)

    def frozen_share(self) -> float:
        """Share of the weights watched that are frozen, read from the device."""
        frozen = torch.stack([w.state["frozen"].sum() for w in self.watched.values()]).sum()
        return float(frozen) / sum(w.weight.numel() for w in self.watched.values())

    def state_dict(self) -> dict[str, Tensor]:
        """{layer's name, dot, what: tensor}; the tensors themselves, not copies."""
        return {f"{name}.{what}": t for name, w in self.watched.items() for what, t in w.state.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a `state_dict()`; ValueError where its names or shapes are not those of this model."""
        own = self.state_dict()
        unknown, absent = sorted(set(state) - set(own)), sorted(set(own) - set(state))
        if unknown or absent:
            raise ValueError(f"the freezer's state is of another model: it lacks {absent} and has {unknown} beyond")
        for name, tensor in own.items():
            if state[name].shape != tensor.shape:
                raise ValueError(f"{name} has shape {tuple(state[name].shape)}; expected {tuple(tensor.shape)}")
            tensor.copy_(state[name])


def annealed(first: float, last: float, done: float) -> float:
    """The threshold when the share `done` of training is behind: from `first` to `last` along half a cosine."""
    return last + (first - last) * (1 + math.cos(math.pi * done)) / 2


class _Watched:
    """One weight, its quantizer, and per element: in the quantizer, the code and whether it is frozen; here, e and f,
    the direction of the last change (0: none yet), and the float weight, to be put back where frozen."""

    def __init__(self, quantizer: Quantizer, weight: Tensor):
        if not quantizer.calibrated:
            name = quantizer.name or type(quantizer).__name__
            raise ValueError(f"{name}: its range is not calibrated; call spequant.calibrate before freezing")
        self.quantizer, self.weight = quantizer, weight
        with torch.no_grad():
            codes = quantizer.encode(weight)
        if quantizer.frozen is None:
            quantizer.hold_codes(codes)
        self.own = {
            "average": codes,
            "direction": torch.zeros_like(codes, dtype=torch.int8),
            "frequency": torch.zeros_like(codes),
            "float": weight.detach().clone(),
        }

    @property
    def state(self) -> dict[str, Tensor]:
        codes, frozen = self.quantizer.frozen_codes, self.quantizer.frozen
        assert codes is not None and frozen is not None
        return {"codes": codes, "frozen": frozen, **self.own}

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
