"""Whether compiling pays in a run with `train.compile auto`: its first steps are uncompiled and timed."""

import statistics
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn

from spequant.app.runs.assembly import Assembly
from spequant.app.runs.compile_time import last_seconds
from spequant.methods import SPEQDistill
from spequant.quantizers import Quantizer
from spequant.train import Compiled

TIMED_EAGER = 5
"""uncompiled steps that are timed, after a first one that fills caches"""
SAVED = {True: 0.4, False: 0.03}
"""share of an uncompiled step that compiling saves, of a network with quantizers and of one without (ResNet-20 on two
cores: .44 with Retrain, .46 with SPEQ; in bf16, .6)"""
SECONDS_EACH = {True: 1.5, False: 1.0}
"""time of compiling for each quantizer, or of a float network for each layer with a weight, where no time is known"""


@dataclass(frozen=True)
class CompileChoice:
    """What the first steps say.

    Args:
        left: steps of the run that are left.
        step: seconds of an uncompiled step.
        saved: share of them that compiling saves.
        cost: seconds of compiling.
    """

    left: int
    step: float
    saved: float
    cost: float

    @property
    def pays(self) -> bool:
        """Whether compiling saves more than it costs."""
        return self.left * self.step * self.saved > self.cost

    def line(self) -> str:
        """Return the choice as one line."""
        gain = f"about {self.left * self.step * self.saved:.0f} s in the {self.left:,} steps left"
        if self.pays:
            return f"compiling: it takes about {self.cost:.0f} s and saves {gain} (train.compile auto)"
        return f"not compiling: it would take about {self.cost:.0f} s and save {gain} (train.compile auto)"


class Trial:
    """The first steps of a run, uncompiled and timed.

    Args:
        assembly: what is trained, of which the compiled parts are paused.
    """

    def __init__(self, assembly: Assembly):
        self.assembly, self.seconds = assembly, list[float]()
        pause(assembly, True)

    def step(self, seconds: float) -> CompileChoice | None:
        """Note the time of one step; return the choice once there are enough."""
        self.seconds.append(seconds)
        if len(self.seconds) <= TIMED_EAGER:
            return None
        recipe, state = self.assembly.recipe, self.assembly.state
        quantized = any(isinstance(m, Quantizer) for m in state.model.modules())
        kind: type[nn.Module] | tuple[type[nn.Module], ...] = Quantizer if quantized else (nn.Linear, nn.Conv2d)
        parts = sum(isinstance(m, kind) for m in state.model.modules())
        compiling = last_seconds(recipe, state.device)
        return CompileChoice(
            left=recipe.train.epochs * self.assembly.steps - state.step,
            step=statistics.median(self.seconds[1:]),
            saved=SAVED[quantized],
            cost=parts * SECONDS_EACH[quantized] if compiling is None else compiling,
        )


def pause(assembly: Assembly, paused: bool) -> None:
    """Let the networks that are compiled run uncompiled, or end that."""
    for part in _compiled(assembly):
        part.paused = paused


def _compiled(assembly: Assembly) -> Iterator[Compiled]:
    """Yield the network that learns, and a separate teacher, where they are compiled."""
    method = assembly.state.method
    owner = method.distill if isinstance(method, SPEQDistill) else method
    for module in (assembly.state.wrapped, getattr(owner, "teacher", None)):
        if isinstance(module, nn.Module):
            yield from (part for part in module.modules() if isinstance(part, Compiled))
