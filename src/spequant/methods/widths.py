"""Passes of one network at several activation widths, and the base of methods that train at all of them."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from spequant.calibration.batch_norm import batch_norm_untracked
from spequant.layers import act_quantizers
from spequant.methods.base import Method, MethodSettings, Start, check_temperature, check_weight
from spequant.methods.tasks import Classification, Task
from spequant.policies import LowBit, precision
from spequant.processes import unwrapped
from spequant.quantizers.base import check_bits


class SeveralWidths:
    """Base of methods that train one network at several activation widths. Their docstrings describe the arguments."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Options of these methods."""

        widths: tuple[int, ...] = (4, 8)
        """activation bits in addition to the network's"""
        temperature: float = 1.0
        """T, the temperature of the softmax"""
        weight: float = 1.0
        """lambda, the weight of the distillation loss"""

        def __post_init__(self) -> None:
            self.make()

        @abstractmethod
        def make(self, task: Task | None = None) -> Method:
            """Return the method; raise a ValueError if a setting is out of range."""

        def build(self, start: Start) -> Method:
            return self.make(start.task)

    def __init__(
        self,
        widths: Sequence[int] = (4, 8),
        *,
        temperature: float = 1.0,
        weight: float = 1.0,
        task: Task | None = None,
    ):
        check_temperature(temperature)
        check_weight(weight, "weight")
        if not widths:
            raise ValueError("widths is empty; expected activation bits, e.g. (4, 8)")
        for width in widths:
            check_bits(width, "widths")
        self.widths, self.task = tuple(widths), task or Classification()
        self.temperature, self.weight = float(temperature), float(weight)


def fewest_bits(model: nn.Module) -> int:
    """Return the fewest bits among the activation quantizers of `model`, which is the width that `at_widths` changes.

    Raises:
        ValueError: `model` has no activation quantizer with bits.
    """
    widths = [q.bits for q in act_quantizers(model).values() if q.bits is not None]
    if not widths:
        raise ValueError("model has no activation quantizer to switch: prepare it with act=, e.g. PACT(2)")
    return min(widths)


def at_widths(model: nn.Module, widths: Sequence[int], task: Task, batch: Any) -> list[Tensor]:
    """Return the logits, with gradient, of `model` at each of `widths`.

    The running statistics of batch norm do not change: only the pass at the home width updates them.

    Args:
        model: The prepared network; it may be compiled or distributed.
        widths: Bits for the activations that have the fewest bits.
        task: Makes logits.
        batch: A batch in the form that `task` reads.
    """
    network = unwrapped(model)
    logits = []
    for width in widths:
        with batch_norm_untracked(network), precision(network, LowBit(width)):
            logits.append(task.logits(network, batch))
    return logits
