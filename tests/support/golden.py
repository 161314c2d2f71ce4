"""Losses of short trainings, of which tests/whole/golden.json holds what they should be.

After a change that should alter them, write that file anew, with tests/ and src/ on PYTHONPATH, and say in the commit
why:

    python -c "from support import forks, golden; forks.forked(golden.write)"

Held to the instructions that all x86-64 processors of today share: with each one's own kernels sums round otherwise, a
value near the middle of two codes takes the other one, and after ten steps the losses of two processors differ by per
cents. Even so an Intel Xeon leaves an AMD EPYC's path at the tenth step of one case, which ends before it. The rivals
run at 6 bits, where another code moves the loss less.
"""

import copy
import json
from contextlib import suppress
from functools import cache
from pathlib import Path

import torch

import spequant
from spequant.data import Augment, ImageSet, eval_batches, load_digits, train_batches
from spequant.methods import (
    CMTKD,
    GSLR,
    QFD,
    QKD,
    SQAKD,
    Apprentice,
    BlockReplacement,
    ExtendedSPEQ,
    JointBits,
    MemberEnsemble,
    SPEQDistill,
)
from spequant.methods.base import trained_by
from spequant.models import resnet8
from spequant.quantizers import CSQ, LSQ, PACT, SAWB, APoT, Quantizer, set_ewgs
from spequant.train import Interrupted, TrainingState, fit, make_optimizer, make_schedule, parameter_groups

STEPS = 20
COMPARED = {"speq, pact and sawb, 2 bits": 9}  # steps, of 20
CASES = {  # of the float network and of what makes it at some bits
    "retrain, pact and sawb, 2 bits": lambda f, at: (spequant.Retrain(), SAWB(2), PACT(2)),
    "speq, pact and sawb, 2 bits": lambda f, at: (spequant.SPEQ(temperature=2), SAWB(2), PACT(2)),
    "speq, lsq, 3 bits": lambda f, at: (spequant.SPEQ(), LSQ(3), LSQ(3)),
    "distill": lambda f, at: (spequant.Distill(f, temperature=2), LSQ(6), LSQ(6)),
    "speq and distill": lambda f, at: (SPEQDistill(spequant.SPEQ(), spequant.Distill(f)), LSQ(6), LSQ(6)),
    "apprentice, joint": lambda f, at: (Apprentice(f, joint=True), LSQ(6), LSQ(6)),
    "apprentice": lambda f, at: (Apprentice(f), LSQ(6), LSQ(6)),
    "qkd": lambda f, at: (QKD(f, steps=STEPS), LSQ(6), LSQ(6)),
    "sqakd, with ewgs": lambda f, at: (SQAKD(f), LSQ(6), LSQ(6)),
    "qfd": lambda f, at: (QFD(f), LSQ(6), LSQ(6)),
    "gslr": lambda f, at: (GSLR(f, steps=STEPS), LSQ(6), LSQ(6)),
    "cmt-kd": lambda f, at: (CMTKD(f, {7: at(7), 8: at(8)}), LSQ(6), LSQ(6)),
    "block replacement": lambda f, at: (BlockReplacement(f), LSQ(6), LSQ(6)),
    "member ensemble": lambda f, at: (MemberEnsemble((7, 8)), LSQ(6), LSQ(6)),
    "joint bits": lambda f, at: (JointBits((7, 8)), LSQ(6), LSQ(6)),
    "extended speq": lambda f, at: (
        ExtendedSPEQ(
            spequant.SPEQ(temperature=2),
            steps=STEPS,
            temperature_end=1.0,
            probability_end=0.1,
            average=at(6),
            decay=0.9,
            head="linear",
            feature_weight=0.5,
        ),
        LSQ(6),
        LSQ(6),
    ),
    "retrain, csq": lambda f, at: (spequant.Retrain(), CSQ(4), LSQ(6)),
    "retrain, apot": lambda f, at: (spequant.Retrain(), APoT(4), LSQ(6)),
}


@cache
def start() -> tuple[ImageSet, torch.nn.Module]:
    """The digits and a float network."""
    torch.manual_seed(0)
    return load_digits()[0], resnet8(in_channels=1)


@cache
def calibrated(weight: type[Quantizer], act: type[Quantizer], weight_bits: int, act_bits: int) -> torch.nn.Module:
    """The float network prepared, its ranges searched for once, which takes longer than the steps."""
    train, floating = start()
    model = spequant.prepare(floating, weight=weight(weight_bits), act=act(act_bits))
    spequant.calibrate(model, eval_batches(train, 128))
    return model


def prepared(weight: Quantizer, act: Quantizer) -> torch.nn.Module:
    return copy.deepcopy(calibrated(type(weight), type(act), weight.bits, act.bits))


def losses(case: str, count: int) -> list[float]:
    """Total loss of the first `count` of 20 fp32 steps on the digits, from a float network made by seed 0."""
    train, floating = start()
    method, weight, act = CASES[case](copy.deepcopy(floating), lambda bits: prepared(LSQ(bits), LSQ(bits)))
    model = prepared(weight, act)
    if "ewgs" in case:
        set_ewgs(model, 0.1)
    learning = [model] if trained_by(method) is None else [model, trained_by(method)]
    optimizer = make_optimizer("sgd", parameter_groups(torch.nn.ModuleList(learning), lr=0.01, weight_decay=1e-4))
    sums: list[float] = []
    with suppress(Interrupted):
        fit(
            TrainingState(model, method, optimizer, make_schedule("cosine", optimizer, STEPS)),
            lambda epoch, start: train_batches(train, 64, seed=0, epoch=epoch, augment=Augment(1, False), start=start),
            epochs=1,
            steps=STEPS,
            on_step=lambda progress: sums.append(float(progress.sums[0])),
            stop=lambda: len(sums) == count,
        )
    return [b - a for a, b in zip([0.0, *sums], sums, strict=False)]


def first_losses(count: int) -> dict[str, list[float]]:
    """Of each case, those that are compared."""
    return {case: losses(case, count)[: COMPARED.get(case)] for case in CASES}


def write() -> None:
    """Write golden.json anew."""
    (Path(__file__).parents[1] / "whole" / "golden.json").write_text(json.dumps(first_losses(STEPS), indent=1) + "\n")
