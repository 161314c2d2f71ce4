"""A recipe on images, each of one class."""

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spequant.app.recipes.recipe import Recipe
from spequant.app.runs.facts import keep_facts
from spequant.app.runs.reporter import Track, untracked
from spequant.app.runs.weights import build_network, origin_named
from spequant.data import Augment, ImageSet, ImageSettings, Mixing, RandomCrop, SoftLabels, eval_batches, train_batches
from spequant.methods.tasks import AnyTask, Classification
from spequant.processes import portion, rank, world
from spequant.train import Evaluation, evaluate

MEASURED_AT_ONCE = 250  # larger ones leave a CPU's caches
CALIBRATION_IMAGES = 1024  # images
REESTIMATE = 40 * 512  # images, in batches of 512, whose statistics are near those of the whole set
SAMPLE_IMAGES = 256  # images, fewer if they are large


class Images:
    """Images as a `fields.Field`."""

    def __init__(self, recipe: Recipe, device: torch.device):
        self.recipe, self.device = recipe, device
        self.task = recipe.chosen_task or Classification()
        assert isinstance(recipe.data, ImageSettings)
        self.data = recipe.data
        self.train, self.held_out, self.test = self.data.parts(recipe.network.name, device)
        self.soft_labels = self._soft_labels()

    def _soft_labels(self) -> SoftLabels | None:
        """Open the file of soft labels that the method reads.

        Raises:
            FileNotFoundError, ValueError: There is none, or it is of other crops or another temperature.
        """
        if self.recipe.method.soft_labels_file is None:
            return None
        path, temperature = self.recipe.method.soft_labels_file
        labels = SoftLabels(path, self.train, self.augment)
        if labels.temperature != temperature:
            raise ValueError(
                f"method.temperature is {temperature:g} and {path} is of {labels.temperature:g}; expected the same: "
                "make it anew with --temperature"
            )
        return labels

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.train), 0 if self.held_out is None else len(self.held_out), len(self.test)

    @property
    def augment(self) -> Augment | RandomCrop | None:
        return self.data.augmentation(self.train)

    @property
    def answers(self) -> str | None:
        return None if self.soft_labels is None else self.soft_labels.digest

    def network(self) -> nn.Module:
        with origin_named(self.recipe):
            return channels_last(build_network(self.recipe.network, self.train), self.device)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """Return the batches, with soft labels if labels are smoothed or images mixed, and with stored answers if the
        method reads them.

        A process mixes the images of its own part: with several processes other images are paired than with one.
        """
        settings = self.recipe.train
        mix = Mixing(self.data.mixup, self.data.cutmix, settings.label_smoothing)
        part = portion(settings.batch_size, "train.batch_size")
        where: dict[str, Any] = {"seed": settings.seed, "epoch": epoch, "start": start, "part": part}
        batches: Iterator[Any]
        if self.soft_labels is not None:
            batches = self.soft_labels.batches(settings.batch_size, **where)
        else:
            batches = train_batches(self.train, settings.batch_size, augment=self.augment, **where)
        if not mix.changes:
            return batches
        return (
            (*mix(images, labels, self.train.classes, (settings.seed, epoch, step)), *answers)
            for step, (images, labels, *answers) in enumerate(batches, start)
        )

    def calibration(self) -> list[Any]:
        # Augmented as in training, since plain images have other statistics of batch norm: float ResNet-20 keeps
        # 91.8 % with statistics of augmented images, and 89.9 % with those of plain ones.
        size = self.recipe.train.batch_size
        batches = train_batches(self.train, size, seed=0, epoch=0, augment=self.augment)
        return list(islice(batches, -(-CALIBRATION_IMAGES // size)))

    def statistics(self) -> Iterator[Any]:
        size = images_at_once(self.train, 512)
        batches = train_batches(self.train, min(size, len(self.train)), seed=0, epoch=0, augment=self.augment)
        return islice(batches, max(1, REESTIMATE // size))

    def sample(self) -> tuple[Tensor]:
        return (self.train.normalise(self.train.images[: images_at_once(self.train, SAMPLE_IMAGES)]),)

    @property
    def example(self) -> Tensor | None:
        return self.train.normalise(self.train.images[:1])

    def measure(self, model: nn.Module, *, held_out: bool = False, track: Track = untracked) -> dict[str, float]:
        data = self.held_out if held_out else self.test
        return {} if data is None else dict(measure(model, data, self.task, track).figures)

    def keep(self, folder: Path) -> None:
        """Write the facts of the images: with the recipe, all that makes the network."""
        keep_facts(self.train, folder)


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """Return `model` on `device` in the channels-last layout, in which convolutions are fastest."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def images_at_once(data: ImageSet, most: int) -> int:
    """Return a batch size for forward passes without gradient, such that batches of any images need similar memory.

    Args:
        data: the images.
        most: the size for images of up to 32 x 32 pixels; larger ones get fewer, at least 64 or `most`.
    """
    height, width = data.images.shape[2:]
    return min(most, max(64, most * 32 * 32 // (height * width)))


def measure(model: nn.Module, data: ImageSet, task: AnyTask | None = None, track: Track = untracked) -> Evaluation:
    """Return figures and loss on `data`, measured by all processes together; default task: classification."""
    size = images_at_once(data, MEASURED_AT_ONCE)
    batches = eval_batches(data, size, turn=rank(), turns=world())
    return evaluate(model, track(batches, -(-len(data) // (size * world()))), task)
