"""The writing side of a run's folder, which belongs to one run while it trains. `folder.py` says what is in it."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import nn

from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.serial import differences, from_json, to_json
from spequant.app.runs.folder import (
    CHECKPOINTS,
    DIVERGED_FILE,
    ENVIRONMENT,
    LOCK,
    METRICS,
    MODEL_FILE,
    RECIPE,
    RESULT,
    environment,
    read_result,
)
from spequant.files import make_folder, placed, write_whole
from spequant.processes import barrier, rank
from spequant.train import Snapshot
from spequant.train.checkpoint import checkpoints, clean, read, write


class Writer:
    """Writes all files of one run. Only the process of rank 0 writes; in the others the methods do nothing.

    Args:
        recipe: What the run trains.
        folder: The run's folder; see `opened`.
    """

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder
        self.writes = rank() == 0
        self.rows: TextIO | None = None
        self.result: dict[str, Any] | None = None
        """of a run that was finished when its folder was opened"""

    def last_checkpoint(self) -> tuple[Snapshot | None, dict[str, Any]]:
        """Return the last checkpoint and the facts that were written with it, or (None, {}) if there is none.

        Raises:
            ValueError: It is of another recipe, or damaged.
        """
        complete = checkpoints(self.folder / CHECKPOINTS)
        if not complete:
            return None, {}
        snapshot, facts = read(complete[-1])
        _check_same(from_json(json.dumps(facts["recipe"])), self.recipe, complete[-1])
        return snapshot, facts

    def start(self, device: torch.device, metrics_bytes: int) -> dict[str, Any]:
        """Write recipe.json, add an entry to environment.json, and cut metrics.jsonl to its first `metrics_bytes`.

        Returns:
            The entry: what this process runs on and with; {} in a process that does not write.
        """
        if not self.writes:
            return {}
        make_folder(self.folder / CHECKPOINTS)
        entry, path = environment(device), self.folder / ENVIRONMENT
        earlier = json.loads(path.read_text()) if path.exists() else []
        write_whole(path, json.dumps([*earlier, entry], indent=2))
        write_whole(self.folder / RECIPE, to_json(self.recipe))
        (self.folder / DIVERGED_FILE).unlink(missing_ok=True)
        self.rows = (self.folder / METRICS).open("a")
        self.rows.truncate(min(metrics_bytes, self.rows.tell()))
        self.rows.seek(0, os.SEEK_END)
        return entry

    def row(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl."""
        if self.rows is not None:
            self.rows.write(json.dumps(row) + "\n")
            self.rows.flush()

    def checkpoint(self, snapshot: Snapshot, facts: dict[str, Any]) -> None:
        """Write a checkpoint, with the recipe and the size of metrics.jsonl added to `facts`."""
        if self.rows is not None:
            os.fsync(self.rows.fileno())
            ours = {"recipe": json.loads(to_json(self.recipe)), "metrics_bytes": self.rows.tell()}
            write(self.folder / CHECKPOINTS, snapshot, {**ours, **facts})

    def finish(self, model: nn.Module, result: dict[str, Any]) -> None:
        """Write model.safetensors, then result.json, whose presence means that the run is finished."""
        self.row({"kind": "result", **result})
        if not self.writes:
            return
        # safetensors takes no two names of one storage: shared quantizers appear twice
        state = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
        with placed(self.folder / MODEL_FILE) as path:
            path.write_bytes(save(state))
        write_whole(self.folder / RESULT, json.dumps(result, indent=2))

    def diverged(self, reason: str) -> None:
        """Write why the run ended without a result."""
        if self.writes:
            write_whole(self.folder / DIVERGED_FILE, f"{reason}\n")

    def close(self) -> None:
        """Close metrics.jsonl."""
        if self.rows is not None:
            self.rows.close()


@contextmanager
def opened(recipe: Recipe, folder: Path, resume: bool) -> Iterator[Writer]:
    """Keep `folder` for one run, and create it if it does not exist. It is removed again if nothing was written.

    A finished run that is to go on is only read: the writer has its `result`.

    Args:
        recipe: What the run trains.
        folder: The run's folder.
        resume: Whether the folder may hold a run.

    Raises:
        FileExistsError: It holds a run and `resume` is false.
        OSError: It cannot be written to, or another run uses it.
        ValueError: The finished run in it is of another recipe, or damaged.
    """
    writer = Writer(recipe, folder)
    if resume and (folder / RESULT).exists():
        _check_same(from_json((folder / RECIPE).read_text()), recipe, folder)
        writer.result = read_result(folder)
        yield writer
        return
    if rank() > 0:
        barrier()  # rank 0 looks first; if it fails, the launcher ends all
        yield writer
        return
    if (folder / RESULT).exists():
        raise FileExistsError(f"{folder} holds a finished run; give another --out, or remove it")
    if (folder / RECIPE).exists() and not resume:
        raise FileExistsError(
            f"{folder} holds a run that is not finished; go on with --resume, give another --out, or remove it"
        )
    real = Path(os.path.realpath(folder))
    new = [p for p in (real, *real.parents) if not p.exists()]
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
        yield writer
    finally:
        lock.release()
        if new and not (folder / RECIPE).exists():
            (folder / LOCK).unlink(missing_ok=True)
            with suppress(OSError):  # another run has started in one of these folders
                for path in new:
                    path.rmdir()


def _check_same(actual: Recipe, expected: Recipe, where: Path) -> None:
    """ValueError unless the run in `where` has the recipe that it is to go on with."""
    if unequal := differences(actual, expected):
        raise ValueError(
            f"{where} is of another recipe: {'; '.join(unequal)}. Resume with the fields that it was started with "
            f"({RECIPE} in the run's folder), or give another --out"
        )
