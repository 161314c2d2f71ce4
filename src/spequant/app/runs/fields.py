"""Images and questions behind one interface: samples, network, batches, figures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from spequant.app.recipes.recipe import Recipe
from spequant.app.runs.images import Images
from spequant.app.runs.questions import Questions
from spequant.app.runs.reporter import Track, untracked
from spequant.methods.tasks import AnyTask


class Field(Protocol):
    """Data of a recipe, loaded on one device, and what depends on their kind."""

    device: torch.device

    @property
    def task(self) -> AnyTask:
        """The task of the batches."""
        ...

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of samples to train on, held out, and to test on."""
        ...

    @property
    def answers(self) -> str | None:
        """Digest of the file of soft labels that batches are read with; None: there is none."""
        ...

    @property
    def example(self) -> Tensor | None:
        """An input of the network, for its integer form; None if it can have no such form."""
        ...

    def network(self) -> nn.Module:
        """Return the float network that the recipe starts from, on the device."""
        ...

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Return this process's part of the training batches of `epoch`, from step `start` on."""
        ...

    def calibration(self) -> list[Any]:
        """Return training batches from which ranges are set, the same in every process."""
        ...

    def statistics(self) -> Iterator[Any]:
        """Return training batches from which batch norm's running statistics are measured."""
        ...

    def sample(self) -> Any:
        """Return the batch on which layers are measured."""
        ...

    def measure(self, model: nn.Module, *, held_out: bool = False, track: Track = untracked) -> dict[str, float]:
        """Return figures of `model`, measured by all processes together, in per cent unless named ..._error.

        Args:
            model: in any mode, which it keeps.
            held_out: on the held-out samples ({} if there are none) instead of the test set.
            track: is called with the batches and their number, and returns them.
        """
        ...

    def keep(self, folder: Path) -> None:
        """Write what is needed to make the network again, apart from its weights, to the run's folder."""
        ...


def make_field(recipe: Recipe, device: torch.device) -> Field:
    """Load the data of `recipe` on `device`."""
    return Questions(recipe, device) if recipe.asks else Images(recipe, device)
