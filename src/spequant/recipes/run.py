"""A recipe carried out: a folder with the recipe, metrics as JSON lines, the network and the result."""

import json
import platform
import subprocess
import sys
import time
from dataclasses import asdict, replace
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from spequant.batch_norm import reestimate_batch_norm
from spequant.calibrate import run_model
from spequant.data import Augment, ImageSet, eval_batches, train_batches
from spequant.layers import weight_bits
from spequant.recipes.build import (
    STATE,
    build_data,
    build_method,
    build_network,
    build_quantized,
    calibrated,
    device_of,
)
from spequant.recipes.schema import Recipe, from_json, to_json
from spequant.train import (
    Diagnostics,
    Evaluation,
    Progress,
    evaluate,
    fit,
    make_optimizer,
    make_schedule,
    parameter_groups,
)

RECIPE, METRICS, RESULT = "recipe.json", "metrics.jsonl", "result.json"
EVAL_BATCH = 500
REESTIMATE = (40, 512)  # batches, images of each: near the whole set's statistics, which evaluation runs on
SAMPLE = 256  # images that the layers' diagnostics look at


class Reporter(Protocol):
    """Told of a run as it goes."""

    def step(self, progress: Progress) -> None: ...

    def epoch(self, row: dict[str, Any]) -> None: ...


class Quiet:
    """A reporter that says nothing."""

    def step(self, progress: Progress) -> None:
        pass

    def epoch(self, row: dict[str, Any]) -> None:
        pass


def run(recipe: Recipe, folder: Path, reporter: Reporter | None = None) -> dict[str, Any]:
    """Train as `recipe` says; the result, also in `folder`/result.json. The test set is read once, at the end.

    FileExistsError: `folder` holds a finished run.
    """
    reporter = reporter or Quiet()
    if (folder / RESULT).exists():
        raise FileExistsError(f"{folder} holds a finished run; give another --out, or remove it")
    if recipe.data.measure_every < 1:
        raise ValueError(f"data.measure_every is {recipe.data.measure_every}; expected 1 or more epochs")
    start = time.perf_counter()
    torch.manual_seed(recipe.train.seed)
    if recipe.train.threads is not None:
        torch.set_num_threads(recipe.train.threads)
    device = device_of(recipe)
    train, held, test = build_data(recipe.data, device)
    network = channels_last(build_network(recipe.network, train), device)
    batch = recipe.train.batch_size
    # Augmented as in training: on plain images batch norm's statistics, and so the network, are others. Float ResNet-20
    # keeps 91.8 % with statistics from augmented images and 89.9 % with those from plain ones.
    augment = Augment() if recipe.data.augment else None
    few = islice(train_batches(train, batch, seed=0, epoch=0, augment=augment), -(-1024 // batch))
    model = calibrated(network, recipe.quant, list(few))
    method = build_method(recipe.method, network, recipe.train.seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECIPE).write_text(to_json(recipe))
    with (folder / METRICS).open("w") as log:

        def write(row: dict[str, Any]) -> None:
            log.write(json.dumps(row) + "\n")
            log.flush()

        write({"kind": "start", **_environment(device)})
        if recipe.quantized:
            write({"kind": "calibrated", **_measure(model, held)})
        _train(recipe, model, method, train, held, reporter, write)
        batches, images = REESTIMATE[0], min(REESTIMATE[1], len(train))
        many = islice(train_batches(train, images, seed=0, epoch=0, augment=augment), batches)
        reestimate_batch_norm(model, many, run_model)
        result = {
            "recipe": recipe.name,
            "seed": recipe.train.seed,
            "test_accuracy": evaluate(model, eval_batches(test, EVAL_BATCH)).accuracy,
            **_measure(model, held),
            "weight_bytes": weight_bits(model) // 8,
            "seconds": round(time.perf_counter() - start, 1),
        }
        write({"kind": "result", **result})
    save_file({k: v.contiguous() for k, v in _saved(model).items()}, folder / STATE)
    (folder / RESULT).write_text(json.dumps(result, indent=2))
    return result


def _train(
    recipe: Recipe, model: nn.Module, method: Any, train: ImageSet, held: ImageSet | None, reporter, write
) -> None:
    settings = recipe.train
    steps = len(train) // settings.batch_size
    optimizer = make_optimizer(
        settings.optimizer,
        parameter_groups(model, lr=settings.lr, weight_decay=settings.weight_decay, range_lr=settings.range_lr),
        momentum=settings.momentum,
    )
    diagnostics = Diagnostics()
    sample = train.normalise(train.images[:SAMPLE])

    def layers(step: int) -> None:
        if recipe.quantized:
            write({"kind": "layers", "epoch": step, **diagnostics(model, sample, step=step)})

    def on_epoch(progress: Progress) -> None:
        measured = (progress.epoch + 1) % recipe.data.measure_every == 0
        row = {**progress.row(), **_measure(model, held if measured else None)}
        write({"kind": "epoch", **row})
        reporter.epoch({**row, "epochs": settings.epochs})
        layers(progress.epoch + 1)

    layers(0)
    fit(
        torch.compile(model) if settings.compile else model,  # type: ignore[arg-type]
        method,
        lambda epoch: train_batches(
            train,
            settings.batch_size,
            seed=settings.seed,
            epoch=epoch,
            augment=Augment() if recipe.data.augment else None,
        ),
        optimizer,
        make_schedule(settings.schedule, optimizer, settings.epochs * steps),
        epochs=settings.epochs,
        steps=steps,
        precision=settings.precision,
        on_step=reporter.step,
        on_epoch=on_epoch,
    )


def channels_last(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` on `device`, images' channels innermost: what convolutions on CPUs and tensor cores like best."""
    return model.to(device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def _measure(model: nn.Module, held: ImageSet | None) -> dict[str, float]:
    """Accuracy on the held-out images, where there are any."""
    return {} if held is None else {"held_out_accuracy": evaluate(model, eval_batches(held, EVAL_BATCH)).accuracy}


def _saved(model: nn.Module) -> dict[str, torch.Tensor]:
    """state_dict with a storage of its own for each name, as safetensors wants it: shared quantizers appear twice."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _environment(device: torch.device) -> dict[str, Any]:
    root = Path(__file__).resolve().parent
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=root, capture_output=True, text=True, check=False
    )
    return {
        "command": " ".join(sys.argv),
        "commit": git.stdout.strip() or None,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "device": torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"cpu, {torch.get_num_threads()} threads",
    }


def load_run(folder: Path) -> tuple[Recipe, nn.Module, ImageSet]:
    """(recipe, trained model, test set) of a finished run. FileNotFoundError where `folder` holds none."""
    for name in (RECIPE, STATE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist; expected the folder of a finished run")
    recipe = from_json((folder / RECIPE).read_text())
    device = device_of(recipe)
    _, _, test = build_data(recipe.data, device)
    network = build_network(replace(recipe.network, weights=None), test)
    model = build_quantized(network, recipe.quant)
    model.load_state_dict(load_file(folder / STATE))
    return recipe, channels_last(model, device), test


def evaluate_run(folder: Path) -> dict[str, Any]:
    """Accuracy and loss of a finished run on its test set."""
    recipe, model, test = load_run(folder)
    result: Evaluation = evaluate(model, eval_batches(test, EVAL_BATCH))
    return {"recipe": recipe.name, "seed": recipe.train.seed, **asdict(result)}
