"""Everything that a recipe trains with, made and brought together: data, network, method, optimizer, processes."""

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spequant.app.recipes.choices import METHOD
from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.training import Training
from spequant.app.runs.fields import Field, make_field
from spequant.app.runs.images import channels_last
from spequant.app.runs.weights import load_teacher
from spequant.calibration.batch_norm import synchronise_batch_norm
from spequant.methods import BlockReplacement, ExtendedSPEQ, Method, SPEQDistill, Start, allow_float
from spequant.methods.base import trained_by
from spequant.networks import versioned
from spequant.processes import world
from spequant.train import (
    Compiled,
    Snapshot,
    TrainingState,
    keep_freed_memory,
    make_accelerator,
    make_deterministic,
    make_schedule,
    parameter_groups,
    wrap,
)
from spequant.train.freezing import OscillationFreezer, annealed

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Assembly:
    """What `assemble` made."""

    recipe: Recipe
    accelerator: "Accelerator"
    field: Field
    state: TrainingState

    @property
    def steps(self) -> int:
        """Optimizer steps of an epoch."""
        return self.field.sizes[0] // self.recipe.train.batch_size


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
    """Load, prepare and calibrate as `recipe` says; or, with a `snapshot`, stand where it was taken.

    ValueError: a batch that does not split evenly over processes and train.accumulate, or what the recipe's data,
    network and method refuse; the same in every process.
    """
    settings = recipe.train
    _check_parts(settings)
    if settings.compile:  # what this process compiled before fits more networks than it is right for
        torch.compiler.reset()
    torch.manual_seed(settings.seed)
    device = accelerator.device if settings.device == "auto" else torch.device(settings.device)
    field = make_field(recipe, device)
    network = field.network()
    float_student = network if recipe.quantized else copy.deepcopy(network)  # a float student is it; `network` teaches
    if snapshot is None:
        model = recipe.quant.calibrated(float_student, field.calibration())
    else:
        model = recipe.quant.build(float_student)
        whole = versioned(model, snapshot.part("model"))
        model.load_state_dict(whole)  # before the optimizer: layers come to share quantizers by it
        model = channels_last(model, device)
    if not recipe.quantized:
        allow_float(model)
    steps = settings.epochs * (field.sizes[0] // settings.batch_size)
    start = Start(
        network=network,
        student=model,
        task=field.task,
        steps=steps * settings.accumulate,
        seed=settings.seed,
        quantized=lambda bits: recipe.quant.at(bits).calibrated(network, field.calibration()),
        load=load_teacher,
        accumulate=settings.accumulate,
    )
    method = recipe.method.build(start)
    if settings.compile:
        compile_teacher(method)
    partner = trained_by(method)
    _check_alone(recipe, partner)
    if world() > 1 and settings.sync_batch_norm:
        synchronise_batch_norm(model)
    learning = model if partner is None else nn.ModuleList([model, partner])
    optimizer = settings.optimizer.build(
        parameter_groups(learning, lr=settings.lr, weight_decay=settings.weight_decay, range_lr=settings.range_lr)
    )
    state = TrainingState(
        model,
        method,
        optimizer,
        make_schedule(settings.schedule, optimizer, steps),
        wrapped=wrap(model, compile=settings.compile),
        ema=settings.ema,
        freezer=_freezer(model, settings, steps),
        seed=settings.seed,
    )
    if snapshot is not None:
        state.restore(snapshot)
    return Assembly(recipe, accelerator, field, state)


def compile_teacher(method: Method) -> None:
    """Compile the separate teacher of `method`, where it has one that does not change during training."""
    owner: Any = method.distill if isinstance(method, SPEQDistill) else method
    learns = trained_by(method) is not None and not isinstance(method, ExtendedSPEQ)
    changes = learns or isinstance(method, BlockReplacement)  # the latter's, call by call
    if not changes and getattr(owner, "teacher", None) is not None:
        owner.teacher = Compiled(owner.teacher).train(isinstance(method, ExtendedSPEQ))


def _check_alone(recipe: Recipe, partner: nn.Module | None) -> None:
    """ValueError where several processes would each train a `partner` of their own."""
    if partner is not None and world() > 1:
        raise ValueError(
            f"method {METHOD.name_of(recipe.method)} trains a network of its own next to the student; there are "
            f"{world()} processes, expected one"
        )


def _check_parts(settings: Training) -> None:
    """ValueError unless each process's share of a batch splits evenly into train.accumulate parts."""
    size, parts, processes = settings.batch_size, settings.accumulate, world()
    together = processes * parts
    if size % together:
        raise ValueError(
            f"train.batch_size is {size} and train.accumulate {parts}, on {processes} process(es); expected a batch "
            f"that splits evenly into {processes} x {parts} parts: give --train.batch-size "
            f"{-(-size // together) * together}, or another --train.accumulate or number of processes"
        )


def _freezer(model: nn.Module, settings: Training, steps: int) -> OscillationFreezer | None:
    first, last = settings.freeze_threshold, settings.freeze_threshold_end
    if first is None:
        return None
    return OscillationFreezer(
        model, threshold=first if last is None else lambda number: annealed(first, last, number / steps)
    )
