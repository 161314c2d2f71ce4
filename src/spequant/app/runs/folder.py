"""The folder of a run: the names of its files, and what is read from them. `writer.py` writes them.

recipe.json        the recipe, every field
environment.json   a list with one entry per start: command, commit, versions, device, processes, date
metrics.jsonl      one row per event: start, epoch, layers, result ...
checkpoints/       see train/checkpoint.py
model.safetensors  the trained network
data.json          of images: number and names of the classes, shape, and how an image file becomes an input
network/           configuration and tokenizer of a transformers network
result.json        the figures; exists only if the run is finished
diverged.txt       why the run ended without a result: its loss was not finite
"""

import json
import os
import platform
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from spequant import __version__
from spequant.app.recipes.catalogue import RECIPES
from spequant.app.recipes.serial import from_json
from spequant.deploy.processor import processor_name
from spequant.processes import world
from spequant.train.checkpoint import checkpoints

RECIPE, METRICS, RESULT, MODEL_FILE = "recipe.json", "metrics.jsonl", "result.json", "model.safetensors"
ENVIRONMENT, CHECKPOINTS, NETWORK, LOCK = "environment.json", "checkpoints", "network", ".lock"
DIVERGED_FILE, FACTS = "diverged.txt", "data.json"
PACKAGES = ("torch", "numpy", "safetensors", "accelerate", "torchvision", "timm", "transformers")


def weight_file(path: Path) -> Path:
    """Return `path` itself if it is a file, or the weight file in it if it is the folder of a run.

    Raises:
        FileNotFoundError: there is no such run, of a recipe that there is.
    """
    file = path / MODEL_FILE if path.is_dir() else path
    if (first := run_first(path)) and not file.is_file():
        raise FileNotFoundError(f"{file} does not exist{first}")
    return file


def run_first(folder: Path) -> str:
    """Return "; run `spequant train NAME` first", or "" if the folder is no run of a recipe, or a finished one."""
    named = re.fullmatch(r"(.+?)(?:-seed(\d+))?", folder.name)
    if named is None or named[1] not in RECIPES or (folder / RESULT).is_file():
        return ""
    words = ["spequant", "train", named[1], *(["--train.seed", named[2]] if named[2] else [])]
    if folder != Path("runs") / folder.name:
        words += ["--out", str(folder)]
    if (folder / RECIPE).is_file():
        words.append("--resume")
    return f"; run `{shlex.join(words)}` first"


def in_use(folder: Path) -> bool:
    """Return whether a run uses `folder` now."""
    path = folder / LOCK
    if not path.exists() or not os.access(path, os.W_OK):
        return False
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        return True
    lock.release()
    return False


def environment(device: torch.device) -> dict[str, Any]:
    """Return what this process runs on: command, commit, versions, device, processes and date."""
    processor = f"{processor_name()}, {torch.get_num_threads()} threads"
    return {
        "command": " ".join(sys.argv),
        "commit": _commit(),
        "python": platform.python_version(),
        "spequant": __version__,
        **{package: _version(package) for package in PACKAGES},
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor,
        "processes": world(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def _commit() -> str | None:
    """Return the commit of the repository with this file; None if it is in none, or installed, or there is no git."""
    file = Path(__file__).resolve()
    commit = ""
    for words in (("ls-files", "--error-unmatch", file.name), ("describe", "--always", "--dirty")):
        try:
            done = subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        commit = done.stdout.strip()
    return commit


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def figures(row: Mapping[str, Any], prefix: str) -> dict[str, float]:
    """Return the figures in a result or in the row of an epoch whose names begin with `prefix`."""
    return {name: value for name, value in row.items() if name.startswith(prefix)}


def main_figure(names: Iterable[str]) -> str:
    """Return the name of the figure by which runs are compared: accuracy, F1, IoU or R2; without them the first one."""
    candidates = list(names)
    return next((name for name in candidates if name.endswith(("_accuracy", "_f1", "_mean_iou", "_r2"))), candidates[0])


def read_result(folder: Path) -> dict[str, Any]:
    """Return the result of a finished run.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: result.json is damaged.
    """
    path = folder / RESULT
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected the folder of a finished run{run_first(folder)}")
    try:
        result = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and go on with --resume") from error
    if not isinstance(result, dict) or not {"recipe", "seed"} <= set(result):
        raise ValueError(f"{path} is no result of a run; expected recipe, seed and figures")
    return result


def listing(parent: Path) -> list[dict[str, Any]]:
    """Return one row per run below `parent`: its path, recipe, state, and the last epoch with its figures."""
    rows = []
    for path in sorted(parent.rglob(RECIPE)):
        folder = path.parent
        row: dict[str, Any] = {"run": str(folder), "date": path.stat().st_mtime}
        try:
            recipe = from_json(path.read_text())
            row |= {"recipe": recipe.name, "seed": recipe.train.seed, "epochs": recipe.train.epochs}
        except ValueError as error:
            row |= {"recipe": f"unreadable: {error}", "state": "unknown"}
            rows.append(row)
            continue
        row |= {**_progress(folder), "state": state_of(folder)}
        if row["state"] == "finished":
            try:
                row |= read_result(folder)
            except ValueError:
                row["state"] = "finished, result.json unreadable"
        rows.append(row)
    return rows


def state_of(folder: Path) -> str:
    """Return whether the run in `folder` is finished, running, diverged or stopped, in words."""
    if (folder / RESULT).exists():
        return "finished"
    if in_use(folder):
        return "running"
    if (folder / DIVERGED_FILE).exists():
        return "diverged"
    return "stopped" if checkpoints(folder / CHECKPOINTS) else "stopped before its first checkpoint"


def _progress(folder: Path) -> dict[str, Any]:
    """Return the number and the figures of the last epoch that can be read."""
    last: dict[str, Any] = {}
    for row in rows_of(folder, "epoch"):
        last = {"epoch": row["epoch"], **figures(row, "held_out_")}
    return last


def rows_of(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Yield the rows of metrics.jsonl of one kind, as far as they can be read."""
    path = folder / METRICS
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # a line that is being written
            continue
        if row.get("kind") == kind:
            yield row
