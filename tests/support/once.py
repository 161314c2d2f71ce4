"""What is dear to make and read by several tests: made once a test run, by whichever of xdist's workers comes first."""

import os
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def made_once(factory, name: str, make: Callable[[], str]) -> str:
    """What `make` gives, from a file that all workers share. factory: pytest's `tmp_path_factory`."""
    base: Path = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    path = base / name
    with FileLock(base / f".{name}.lock"):
        if not path.exists():
            text = make()
            path.write_text(text)
        return path.read_text()
