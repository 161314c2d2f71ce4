"""What one of several processes computes, and alone its twin."""

import hashlib
import os
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch

import spequant
from spequant.app.recipes import RECIPES, Recipe
from spequant.data import load_digits, train_batches
from spequant.layers import act_quantizers
from spequant.models import resnet8
from spequant.policies import Stochastic, precision
from spequant.processes import gathered, portion, rank, sum_over_processes, world
from spequant.quantizers import PACT, SAWB
from spequant.train import make_accelerator, train_step
from support.assembled import assembled

STEPS = 8


def recipe(name: str, *, lr: float = 0.02, **changes) -> Recipe:
    made = RECIPES[name]()
    train = replace(made.train, device="cpu", threads=1, lr=lr, **changes)
    return replace(made, train=train, network=replace(made.network, weights=None))


def digest(model: torch.nn.Module) -> str:
    return hashlib.sha256(b"".join(v.detach().numpy().tobytes() for v in model.parameters())).hexdigest()


def trained(recipe: Recipe, steps: int, measured: bool = False) -> dict:
    """Losses of some steps over all processes, how far each parameter went, and whether all end with equal weights."""
    assembly = assembled(recipe, Path())
    state = assembly.state
    start = {name: v.detach().clone() for name, v in state.model.named_parameters()}
    state.wrapped.train()
    losses = []
    for batch in islice(assembly.field.batches(0, 0), steps):
        sums = sum_over_processes(train_step(state, batch, assembly.accelerator)) / world()
        losses.append(sums[:3].tolist())
    return {
        "losses": losses,
        "moved": {name: float((v.detach() - start[name]).norm()) for name, v in state.model.named_parameters()},
        "equal": len(set(gathered(digest(state.model)))) == 1,
        **(assembly.field.measure(state.model) if measured else {}),
        "draws": gathered(draw(state.model)) if recipe.quantized else [],
    }


def draw(model: torch.nn.Module) -> list[float]:
    with precision(model, Stochastic(), seed=0, step=0, rank=rank()):
        return [float(q.levels) for q in act_quantizers(model).values()]


def calibrated() -> dict:
    """Ranges and running statistics from batches of which each process sees its part."""
    torch.manual_seed(0)
    train, _ = load_digits()
    model = spequant.prepare(resnet8(in_channels=1), weight=SAWB(2), act=PACT(2))
    batches = list(train_batches(train, 128, seed=0, epoch=0, augment=None, part=portion(128, "batch")))
    spequant.calibrate(model, batches, samples=1024)
    return {
        "equal": len(set(gathered(digest(model)))) == 1,
        "ranges": {name: float(q.bounds(torch.zeros(1))[1].detach()) for name, q in act_quantizers(model).items()},
        "means": model.bn1.running_mean.tolist(),
    }


def found(address: dict[str, str]) -> dict:
    """What this process, one of those that a launcher's variables in `address` tell of, finds. {}: it is alone."""
    os.environ.update(address)
    torch.set_num_threads(1)
    make_accelerator(device="cpu")  # joins the others
    return {
        "world": world(),
        "calibrated": calibrated(),
        "float": trained(recipe("digits-float"), STEPS, measured=True),
        "retrain": trained(recipe("digits-w2a2-retrain", lr=1e-3), STEPS, measured=True),
        "accumulated": trained(recipe("digits-float", accumulate=2, clip_norm=0.5), 2),
        "unsynchronised": trained(recipe("digits-float", sync_batch_norm=False), 2),
        "speq": trained(recipe("digits-w2a2-speq", ema=0.9), 4),
    }
