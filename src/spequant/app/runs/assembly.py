"""Everything that a recipe trains with: network, method, optimizer."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from spequant.app.recipes.choices import METHOD
from spequant.app.recipes.recipe import Recipe
from spequant.app.runs.fields import Field
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
from spequant.train.freezing import make_freezer

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
    field: Field,
    accelerator: "Accelerator",
    snapshot: Snapshot | None = None,
    *,
    phase: Callable[[str], None] = lambda text: None,
) -> Assembly:
    """Load the network, prepare and calibrate it as `recipe` says.

    Args:
        recipe: What to train.
        field: Its data.
        accelerator: Of the processes that train.
        snapshot: The state to go on from; default: the start.
        phase: Is told what begins.

    Raises:
        ValueError: The network or the method refuse. The error is the same in every process.
    """
    settings = recipe.train
    if settings.compile:  # graphs compiled earlier in this process would be reused for other networks
        torch.compiler.reset()
    torch.manual_seed(settings.seed)
    phase("loading the network")
    network = field.network()
    if recipe.quantized and snapshot is None:
        phase("calibrating")
    model = _student(recipe, field, network, snapshot)
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
        freezer=make_freezer(model, settings.freeze_threshold, settings.freeze_threshold_end, steps),
        seed=settings.seed,
    )
    if snapshot is not None:
        state.restore(snapshot)
    return Assembly(recipe, accelerator, field, state)


def _student(recipe: Recipe, field: Field, network: nn.Module, snapshot: Snapshot | None) -> nn.Module:
    """Return the network that is trained: calibrated, or with the tensors of a snapshot."""
    float_student = network if recipe.quantized else copy.deepcopy(network)  # it changes; `network` teaches
    if snapshot is None:
        model = recipe.quant.calibrated(float_student, field.calibration())
    else:
        model = recipe.quant.build(float_student)
        # before the optimizer is made: by loading, layers may come to share quantizers
        model.load_state_dict(versioned(model, snapshot.part("model")))
        model = channels_last(model, field.device)
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
    teacher: nn.Module | None = getattr(owner, "teacher", None)
    if teacher is None or isinstance(method, BlockReplacement):  # whose teacher is another network at each call
        return
    if not any(p.requires_grad for p in teacher.parameters()):
        owner.teacher = Compiled(teacher).train(isinstance(method, ExtendedSPEQ))


def _check_alone(recipe: Recipe, partner: nn.Module | None) -> None:
    """Refuse several processes, if each would train its own `partner`."""
    if partner is not None and world() > 1:
        raise ValueError(
            f"method {METHOD.name_of(recipe.method)} trains parameters of its own next to the student; there are "
            f"{world()} processes, expected one"
        )
