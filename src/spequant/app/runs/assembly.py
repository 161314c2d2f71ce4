"""Everything that a recipe trains with: data, network, method, optimizer."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spequant.app.recipes.choices import METHOD
from spequant.app.recipes.origins import weights_origin
from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.training import Training
from spequant.app.runs.fields import Field, make_field
from spequant.app.runs.folder import run_first
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
    make_schedule,
    parameter_groups,
    wrap,
)
from spequant.train.freezing import OscillationFreezer, annealed

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass
class Assembly:
    """Everything that a recipe trains with."""

    recipe: Recipe
    accelerator: "Accelerator"
    field: Field
    state: TrainingState

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch."""
        return self.field.sizes[0] // self.recipe.train.batch_size


def assemble(
    recipe: Recipe,
    accelerator: "Accelerator",
    snapshot: Snapshot | None = None,
    *,
    phase: Callable[[str], None] = lambda text: None,
) -> Assembly:
    """Load, prepare and calibrate as `recipe` says.

    Args:
        recipe: What to train.
        accelerator: Of the processes that train.
        snapshot: The state to go on from; default: the start.
        phase: Is told what begins.

    Raises:
        ValueError: A batch does not split evenly over processes and train.accumulate, or the data, the network or the
            method refuse. The error is the same in every process.
    """
    settings = recipe.train
    _check_parts(settings)
    if settings.compile:  # graphs compiled earlier in this process would be reused for other networks
        torch.compiler.reset()
    torch.manual_seed(settings.seed)
    device = accelerator.device if settings.device == "auto" else torch.device(settings.device)
    phase("loading data and network")
    field = make_field(recipe, device)
    try:
        network = field.network()
    except FileNotFoundError as error:
        if recipe.network.weights is not None and run_first(recipe.network.weights):
            raise  # it says which command makes the run
        raise FileNotFoundError(f"{error}. {weights_origin(recipe)}") from error
    if recipe.quantized and snapshot is None:
        phase("calibrating")
    model = _student(recipe, field, network, snapshot, device)
    steps = settings.epochs * (field.sizes[0] // settings.batch_size)
    method = _method(recipe, field, network, model, steps * settings.accumulate, phase)
    partner = trained_by(method)
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
        wrapped=wrap(model, compile=bool(settings.compile)),
        ema=settings.ema,
        freezer=_freezer(model, settings, steps),
        seed=settings.seed,
    )
    if snapshot is not None:
        state.restore(snapshot)
    return Assembly(recipe, accelerator, field, state)


def _student(
    recipe: Recipe, field: Field, network: nn.Module, snapshot: Snapshot | None, device: torch.device
) -> nn.Module:
    """Return the network that is trained: calibrated, or with the tensors of a snapshot."""
    float_student = network if recipe.quantized else copy.deepcopy(network)  # it changes; `network` teaches
    if snapshot is None:
        model = recipe.quant.calibrated(float_student, field.calibration())
    else:
        model = recipe.quant.build(float_student)
        # before the optimizer is made: by loading, layers may come to share quantizers
        model.load_state_dict(versioned(model, snapshot.part("model")))
        model = channels_last(model, device)
    if not recipe.quantized:
        allow_float(model)
    return model


def _method(
    recipe: Recipe, field: Field, network: nn.Module, student: nn.Module, calls: int, phase: Callable[[str], None]
) -> Method:
    """Return the method of `recipe`; calls: of it, in the whole training."""

    def calibrated(bits: int) -> nn.Module:
        phase("calibrating the teacher")
        return recipe.quant.at(bits).calibrated(network, field.calibration())

    method = recipe.method.build(
        Start(
            network=network,
            student=student,
            task=field.task,
            steps=calls,
            seed=recipe.train.seed,
            quantized=calibrated,
            load=load_teacher,
            accumulate=recipe.train.accumulate,
        )
    )
    if recipe.train.compile:
        compile_teacher(method)
    _check_alone(recipe, trained_by(method))
    return method


def compile_teacher(method: Method) -> None:
    """Compile the separate teacher of `method`, if it has one that stays the same during training."""
    owner: Any = method.distill if isinstance(method, SPEQDistill) else method
    learns = trained_by(method) is not None and not isinstance(method, ExtendedSPEQ)
    changes = learns or isinstance(method, BlockReplacement)  # its teacher is another network at each call
    if not changes and getattr(owner, "teacher", None) is not None:
        owner.teacher = Compiled(owner.teacher).train(isinstance(method, ExtendedSPEQ))


def _check_alone(recipe: Recipe, partner: nn.Module | None) -> None:
    """Refuse several processes, if each would train its own `partner`."""
    if partner is not None and world() > 1:
        raise ValueError(
            f"method {METHOD.name_of(recipe.method)} trains a network of its own next to the student; there are "
            f"{world()} processes, expected one"
        )


def _check_parts(settings: Training) -> None:
    """Refuse a batch that does not split evenly over processes and train.accumulate."""
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
