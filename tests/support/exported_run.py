"""The run that all tests share, exported: made once a process, to be read alone."""

import os
from functools import cache
from pathlib import Path

from spequant.app.runs import evaluate_source, export_source

SUFFIX = {"packed": ".packed", "onnx": ".onnx"}


@cache
def exported(run: Path, to: str) -> Path:
    """The file of that format of the finished `run`, in a folder of this process beside it."""
    folder = run.parent / f"exported-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    path = folder / f"net{SUFFIX[to]}"
    export_source(run, to, path)  # type: ignore[arg-type]
    return path


def accuracy(path: Path, **how) -> float:
    (row,) = evaluate_source(path, **how)
    return row["accuracy"]
