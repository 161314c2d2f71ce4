"""A run's folder: who may write to it, its small files, and the list of runs below another folder.

recipe.json        the recipe, every field
environment.json   a list, one entry a start: command, commit, versions, device, processes, date
metrics.jsonl      rows of training
checkpoints/       see train/checkpoint.py
model.safetensors  the trained network
network/           configuration and tokenizer of a network of transformers
result.json        there once the run is finished
"""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout

from spequant import __version__
from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.serial import differences, from_json, to_json
from spequant.deploy.processor import processor_name
from spequant.files import make_folder, write_whole
from spequant.processes import barrier, rank, world
from spequant.train import Snapshot
from spequant.train.checkpoint import checkpoints, clean, read

RECIPE, METRICS, RESULT, STATE = "recipe.json", "metrics.jsonl", "result.json", "model.safetensors"
ENVIRONMENT, CHECKPOINTS, NETWORK, LOCK = "environment.json", "checkpoints", "network", ".lock"
DIVERGED = "diverged.txt"
"""why a run ended without a result: its loss was not finite"""
PACKAGES = ("torch", "numpy", "safetensors", "accelerate", "torchvision", "timm", "transformers")


def weight_file(path: Path) -> Path:
    """A weight file, or that of a run's folder."""
    return path / STATE if path.is_dir() else path


@contextmanager
def held(folder: Path, resume: bool) -> Iterator[None]:
    """Inside, `folder` is this run's alone. Made where it does not exist, and removed again if nothing came of it.

    FileExistsError: it holds a run and `resume` is false. OSError: it cannot be written to, or is in use.
    """
    if rank() > 0:
        barrier()  # rank 0 looks first; where it fails the launcher ends all
        yield
        return
    if (folder / RESULT).exists():
        raise FileExistsError(f"{folder} holds a finished run; give another --out, or remove it")
    if (folder / RECIPE).exists() and not resume:
        raise FileExistsError(
            f"{folder} holds a run that is not finished; go on with --resume, give another --out, or remove it"
        )
    real = Path(os.path.realpath(folder))
    made = [p for p in (real, *real.parents) if not p.exists()]
    try:
        make_folder(folder)
        lock = FileLock(folder / LOCK)
        lock.acquire(timeout=0)
    except Timeout:
        raise OSError(f"{folder} is in use by another run; give another --out, or wait for its end") from None
    except OSError as error:
        raise OSError(f"{folder} cannot be written to ({error}); give another --out") from error
    try:
        clean(folder / CHECKPOINTS)
        barrier()
        yield
    finally:
        lock.release()
        if made and not (folder / RECIPE).exists():
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # another run has begun beside this one
                for path in made:
                    path.rmdir()


def in_use(folder: Path) -> bool:
    """Whether a run holds `folder` at this moment."""
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


def start_files(folder: Path, recipe: Recipe, device: torch.device) -> dict[str, Any]:
    """Write recipe.json and add this start to environment.json; that entry."""
    make_folder(folder / CHECKPOINTS)
    here = environment(device)
    path = folder / ENVIRONMENT
    before = json.loads(path.read_text()) if path.exists() else []
    write_whole(path, json.dumps([*before, here], indent=2))
    write_whole(folder / RECIPE, to_json(recipe))
    (folder / DIVERGED).unlink(missing_ok=True)
    return here


def environment(device: torch.device) -> dict[str, Any]:
    """What this process runs on and with."""
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
    """Of the repository that this file is in; None: it is in none, or was installed, or there is no git."""
    file = Path(__file__).resolve()
    found = ""
    for words in (("ls-files", "--error-unmatch", file.name), ("describe", "--always", "--dirty")):
        try:
            done = subprocess.run(["git", *words], cwd=file.parent, capture_output=True, text=True, check=True)
        except (OSError, subprocess.CalledProcessError):
            return None
        found = done.stdout.strip()
    return found


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def last_checkpoint(recipe: Recipe, folder: Path) -> tuple[Snapshot | None, dict[str, Any]]:
    """(the last checkpoint in `folder`, what was written with it); (None, {}) where there is none. ValueError: it is of
    another recipe."""
    found = checkpoints(folder / CHECKPOINTS)
    if not found:
        return None, {}
    snapshot, facts = read(found[-1])
    check_same_recipe(from_json(json.dumps(facts["recipe"])), recipe, found[-1])
    return snapshot, facts


def check_same_recipe(found: Recipe, expected: Recipe, where: Path) -> None:
    """ValueError: `found`, of the run in `where`, is not the recipe that the run is to go on with."""
    other = differences(found, expected)
    if other:
        raise ValueError(
            f"{where} is of another recipe: {'; '.join(other)}. Resume with the fields that it was started with "
            f"({RECIPE} in the run's folder), or give another --out"
        )


class Metrics:
    """metrics.jsonl: rows added one by one; on resuming cut back to where the checkpoint stood."""

    def __init__(self, path: Path, size: int = 0):
        self.file = path.open("a")
        self.file.truncate(min(size, self.file.tell()))
        self.file.seek(0, os.SEEK_END)

    def write(self, row: dict[str, Any]) -> None:
        self.file.write(json.dumps(row) + "\n")
        self.file.flush()

    def size(self) -> int:
        """Bytes, all of them forced to the disk."""
        os.fsync(self.file.fileno())
        return self.file.tell()

    def close(self) -> None:
        self.file.close()


def figures(row: dict[str, Any], prefix: str) -> dict[str, float]:
    """Of a run's result or an epoch, those whose names begin with `prefix`: "test_" or "held_out_"."""
    return {name: value for name, value in row.items() if name.startswith(prefix)}


def main_figure(names: Iterable[str]) -> str:
    """The one by which runs are compared, of which more is better: accuracy, or of other tasks F1, IoU or R2."""
    return next(name for name in names if name.endswith(("_accuracy", "_f1", "_mean_iou", "_r2")))


def read_result(folder: Path) -> dict[str, Any]:
    """What a finished run came to. FileNotFoundError: it is not finished. ValueError: damaged."""
    path = folder / RESULT
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected the folder of a finished run")
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}); remove it and go on with --resume") from error
    if not isinstance(found, dict) or not {"recipe", "seed"} <= set(found):
        raise ValueError(f"{path} is no result of a run; expected recipe, seed and figures")
    return found


def listing(parent: Path) -> list[dict[str, Any]]:
    """A row for each run below `parent`: path, recipe, state, step, epoch, accuracies as far as it got."""
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
        row |= _progress(folder)
        if (folder / RESULT).exists():
            try:
                row |= {**read_result(folder), "state": "finished"}
            except ValueError:
                row["state"] = "finished, result.json unreadable"
        elif in_use(folder):
            row["state"] = "running"
        elif (folder / DIVERGED).exists():
            row["state"] = "diverged"
        else:
            row["state"] = "stopped" if checkpoints(folder / CHECKPOINTS) else "stopped before its first checkpoint"
        rows.append(row)
    return rows


def _progress(folder: Path) -> dict[str, Any]:
    """The last epoch's row that can be read."""
    found: dict[str, Any] = {}
    for row in rows_of(folder, "epoch"):
        found = {"epoch": row["epoch"], **figures(row, "held_out_")}
    return found


def rows_of(folder: Path, kind: str) -> Iterator[dict[str, Any]]:
    """The rows of metrics.jsonl of that kind, as far as they can be read; none where there is no such file."""
    path = folder / METRICS
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            row = json.loads(line)
        except ValueError:  # the end of a line that is being written
            continue
        if row.get("kind") == kind:
            yield row
