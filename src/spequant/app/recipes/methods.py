"""From a recipe's choice of a method to the object that trains."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from spequant import models
from spequant.app.recipes.folder import weight_file
from spequant.app.recipes.schema import MethodChoice
from spequant.layers import weight_quantizers
from spequant.methods import (
    CMTKD,
    GSLR,
    QFD,
    QKD,
    SPEQ,
    SQAKD,
    Apprentice,
    BlockReplacement,
    Distill,
    ExtendedSPEQ,
    JointBits,
    MemberEnsemble,
    Method,
    Retrain,
    SPEQDistill,
    losses,
)
from spequant.methods.base import trained_by
from spequant.methods.tasks import Task
from spequant.networks import head_of
from spequant.policies import Mix
from spequant.train import Compiled


@dataclass(frozen=True)
class Given:
    """What methods are made with. network: the float one that the student starts from. steps: calls in all of training.
    quantized: that network prepared at some bits, calibrated. student: the network that learns, as it stands.
    accumulate: calls that make one step."""

    network: nn.Module
    seed: int
    steps: int
    quantized: Callable[[int], nn.Module]
    student: nn.Module | None = None
    task: Task | None = None
    accumulate: int = 1


def build_method(choice: MethodChoice, given: Given, *, compile: bool = False) -> Method:
    """The teacher is `given.network`, with the weights that the recipe names, if any. compile: a frozen teacher."""
    if choice.teacher is not None and choice.name in WITH_TEACHER:
        models.load_weights(given.network, weight_file(choice.teacher))
    method = BUILDERS[choice.name](choice, given)
    owner: Any = method.distill if isinstance(method, SPEQDistill) else method
    learns = trained_by(method) is not None and not isinstance(method, ExtendedSPEQ)
    changes = learns or isinstance(method, BlockReplacement)  # the latter's, call by call
    if compile and not changes and getattr(owner, "teacher", None) is not None:
        owner.teacher = Compiled(owner.teacher).train(isinstance(method, ExtendedSPEQ))
    return method


def _given(choice: MethodChoice, given: Given, *names: str) -> dict[str, Any]:
    """The task, and those of `names` that the recipe sets; the method's own defaults stand for the others."""
    return {"task": given.task, **{name: value for name in names if (value := getattr(choice, name)) is not None}}


def _speq(choice: MethodChoice, given: Given) -> SPEQ | ExtendedSPEQ:
    """SPEQ, and around it what the recipe adds."""
    speq = _plain_speq(choice, given)
    added: dict[str, Any] = {n: getattr(choice, n) for n in ("probability_end", "temperature_end", "feature_weight")}
    if all(getattr(choice, n) == getattr(MethodChoice, n) for n in (*added, "average")):
        return speq
    if choice.feature_weight:
        added["head"] = head_of(given.network)
    if choice.average is not None:
        assert given.student is not None
        average = copy.deepcopy(given.student)
        for quantizer in weight_quantizers(average).values():  # of a run gone on with, weights may be frozen by now
            quantizer.frozen = quantizer.frozen_codes = None
        added |= {"average": average, "decay": choice.average ** (1 / given.accumulate)}
    return ExtendedSPEQ(speq, steps=given.steps, **added)


def _plain_speq(choice: MethodChoice, given: Given) -> SPEQ:
    return SPEQ(
        choice.high_bits,
        choice.probability,
        policy=Mix() if choice.mix else None,
        batch_norm=choice.batch_norm,
        passes=choice.passes,
        seed=given.seed,
        **_given(choice, given, "temperature", "weight"),
        **_loss(choice),
    )


def _distill(choice: MethodChoice, given: Given) -> Distill:
    return Distill(given.network, **_given(choice, given, "temperature", "weight"), **_loss(choice))


def _loss(choice: MethodChoice) -> dict[str, Any]:
    return {} if choice.loss is None else {"loss": losses.by_name[choice.loss]}


def _cmt_kd(choice: MethodChoice, given: Given) -> CMTKD:
    teachers = {bits: given.quantized(bits) for bits in choice.widths}
    return CMTKD(given.network, teachers, **_given(choice, given, "temperature"))


def _qfd(choice: MethodChoice, given: Given) -> QFD:
    return QFD(given.network, bits=choice.feature_bits, **_given(choice, given, "weight"))


SETTINGS = ("temperature", "weight")
BUILDERS: dict[str, Callable[[MethodChoice, Given], Method]] = {
    "retrain": lambda c, g: Retrain(task=g.task),
    "speq": _speq,
    "distill": _distill,
    "speq-distill": lambda c, g: SPEQDistill(_plain_speq(c, g), _distill(c, g)),
    "apprentice": lambda c, g: Apprentice(g.network, joint=c.joint, task=g.task),
    "qkd": lambda c, g: QKD(g.network, steps=g.steps, **_given(c, g, "temperature")),
    "sqakd": lambda c, g: SQAKD(g.network, **_given(c, g, "temperature")),
    "qfd": _qfd,
    "gslr": lambda c, g: GSLR(g.network, steps=g.steps, **_given(c, g, *SETTINGS)),
    "cmt-kd": _cmt_kd,
    "block-replacement": lambda c, g: BlockReplacement(g.network, **_given(c, g, *SETTINGS)),
    "member-ensemble": lambda c, g: MemberEnsemble(c.widths, **_given(c, g, *SETTINGS)),
    "joint-bits": lambda c, g: JointBits(c.widths, **_given(c, g, *SETTINGS)),
}
WITH_TEACHER = ("distill", "speq-distill", "apprentice", "qkd", "sqakd", "qfd", "gslr", "block-replacement")
