"""What a recipe's data are, images or questions, as one interface: samples, network, batches, figures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spequant.app.recipes.recipe import Recipe
from spequant.app.runs.images import Images
from spequant.app.runs.questions import Questions
from spequant.methods.tasks import AnyTask


class Field(Protocol):
    """Loaded on one device. task: of its batches. sizes: samples to train on, held out, and to test on. example: an
    input of the network for integer arithmetic, or None where it has no such form."""

    @property
    def task(self) -> AnyTask: ...

    @property
    def sizes(self) -> tuple[int, int, int]: ...

    @property
    def example(self) -> Tensor | None: ...

    def network(self) -> nn.Module:
        """The float network that the recipe starts from, on the device."""
        ...

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """This process's part of the training batches of `epoch`, from step `start` on."""
        ...

    def calibration(self) -> list[Any]:
        """Training batches for ranges, the very same ones in every process."""
        ...

    def statistics(self) -> Iterator[Any]:
        """Training batches for batch norm's running statistics."""
        ...

    def sample(self) -> Any:
        """A batch that the layers' diagnostics look at."""
        ...

    def measure(self, model: nn.Module, *, held: bool = False) -> dict[str, float]:
        """Figures of the test set, or of what is held out (none: {}), in per cent unless named ..._error; shared among
        the processes."""
        ...

    def keep(self, folder: Path) -> None:
        """Write into a run's folder what its network cannot be made again without."""
        ...


def make_field(recipe: Recipe, device: torch.device) -> Field:
    """Load what `recipe` learns from."""
    return Questions(recipe, device) if recipe.asks else Images(recipe, device)
