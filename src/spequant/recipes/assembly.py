"""Everything that a recipe trains with, made and brought together: data, network, method, optimizer, processes."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spequant.batch_norm import synchronise_batch_norm
from spequant.data import Augment, ImageSet, Mixing, RandomCrop, eval_batches, train_batches
from spequant.processes import portion, rank, world
from spequant.recipes.build import (
    build_augment,
    build_data,
    build_method,
    build_network,
    build_quantized,
    calibrated,
)
from spequant.recipes.schema import Recipe, Training
from spequant.train import (
    Evaluation,
    Snapshot,
    TrainingState,
    evaluate,
    keep_freed_memory,
    make_accelerator,
    make_deterministic,
    make_optimizer,
    make_schedule,
    parameter_groups,
    wrap,
)
from spequant.train.freezing import OscillationFreezer, annealed

if TYPE_CHECKING:
    from accelerate import Accelerator

EVAL_BATCH = 500
CALIBRATION = 1024  # images


@dataclass
class Assembly:
    """What `assemble` made."""

    recipe: Recipe
    accelerator: "Accelerator"
    train: ImageSet
    held: ImageSet | None
    test: ImageSet
    state: TrainingState

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return len(self.train) // self.recipe.train.batch_size

    @property
    def augment(self) -> Augment | RandomCrop | None:
        return build_augment(self.recipe.data, self.train)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        """This process's part of the training batches of `epoch`, from step `start` on; labels soft where they are
        smoothed or images mixed. Images are mixed within the part, so that several processes pair others than one."""
        settings, data = self.recipe.train, self.recipe.data
        mix = Mixing(data.mixup, data.cutmix, settings.label_smoothing)
        batches = train_batches(
            self.train,
            settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            augment=self.augment,
            start=start,
            part=portion(settings.batch_size, "train.batch_size"),
        )
        if not mix.changes:
            return batches
        return (
            mix(images, labels, self.train.classes, (settings.seed, epoch, step))
            for step, (images, labels) in enumerate(batches, start)
        )


def start_processes(recipe: Recipe, folder: Path) -> "Accelerator":
    """Join the other processes, if a launcher started some; threads and kernels as `recipe` says."""
    settings = recipe.train
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if settings.deterministic:
        make_deterministic()
    keep_freed_memory()
    return make_accelerator(
        settings.precision,
        device=settings.device,
        accumulate=settings.accumulate,
        tracker=settings.tracker,
        folder=folder,
    )


def assemble(recipe: Recipe, accelerator: "Accelerator", snapshot: Snapshot | None = None) -> Assembly:
    """Load, prepare and calibrate as `recipe` says; or, with a `snapshot`, stand where it was taken."""
    settings = recipe.train
    torch.manual_seed(settings.seed)
    device = accelerator.device if settings.device == "auto" else torch.device(settings.device)
    train, held, test = build_data(recipe.data, device, recipe.network.name)
    portion(
        portion(settings.batch_size, "train.batch_size").stop, "a process's part of a batch", settings.accumulate, 0
    )
    network = channels_last(build_network(recipe.network, train), device)
    if snapshot is None:
        # Augmented as in training: on plain images batch norm's statistics, and so the network, are others. Float
        # ResNet-20 keeps 91.8 % with statistics from augmented images and 89.9 % with those from plain ones.
        augment = build_augment(recipe.data, train)
        batches = train_batches(train, settings.batch_size, seed=0, epoch=0, augment=augment)
        # The same ones in every process: ranges then are those of one process.
        model = calibrated(network, recipe.quant, list(islice(batches, -(-CALIBRATION // settings.batch_size))))
    else:
        model = build_quantized(network, recipe.quant)
        model.load_state_dict(snapshot.part("model"))  # before the optimizer: layers come to share quantizers by it
        model = channels_last(model, device)
    method = build_method(recipe.method, network, settings.seed, compile=settings.compile)
    if world() > 1 and settings.sync_batch_norm:
        synchronise_batch_norm(model)
    optimizer = make_optimizer(
        settings.optimizer,
        parameter_groups(model, lr=settings.lr, weight_decay=settings.weight_decay, range_lr=settings.range_lr),
        momentum=settings.momentum,
    )
    steps = len(train) // settings.batch_size
    state = TrainingState(
        model,
        method,
        optimizer,
        make_schedule(settings.schedule, optimizer, settings.epochs * steps),
        wrapped=wrap(model, compile=settings.compile),
        ema=settings.ema,
        freezer=_freezer(model, settings, settings.epochs * steps),
        seed=settings.seed,
    )
    if snapshot is not None:
        state.restore(snapshot)
    return Assembly(recipe, accelerator, train, held, test, state)


def _freezer(model: nn.Module, settings: Training, steps: int) -> OscillationFreezer | None:
    first, last = settings.freeze_threshold, settings.freeze_threshold_end
    if first is None:
        return None
    return OscillationFreezer(
        model, threshold=first if last is None else lambda number: annealed(first, last, number / steps)
    )


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on `device`, images' channels innermost: what convolutions on CPUs and tensor cores like best."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def images_at_once(data: ImageSet, most: int) -> int:
    """Of a forward pass without gradient: `most` of 32 x 32 pixels or smaller ones, fewer of larger ones, never under
    64 (or `most`): a batch of some memory, whatever the images."""
    height, width = data.images.shape[2:]
    return min(most, max(64, most * 32 * 32 // (height * width)))


def measure(model: nn.Module, data: ImageSet) -> Evaluation:
    """Accuracy and loss on `data`, shared among the processes."""
    return evaluate(model, eval_batches(data, images_at_once(data, EVAL_BATCH), turn=rank(), turns=world()))
