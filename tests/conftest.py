"""Fixtures that all tests share: the data at hand, one thread, fixed seeds. No tests and no builders of models here."""

import fcntl
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

UNPACK = Path(__file__).resolve().parents[2] / "shared" / "data" / "unpack.py"
FOLDERS = {
    "cifar10": "cifar-10-batches-bin",
    "cifar100": "cifar-100-binary",
    "squad": "squad",
    "tiny-imagenet": "tiny-imagenet-10",
    "weights": "weights",
}

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what is not there is an error at once, not after a minute of retries
torch.set_num_threads(1)  # xdist runs a worker a core; more threads than cores only slows them down


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same state of torch's and numpy's global generators."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder that holds `cifar-10-batches-bin/` and `weights/`; the test is skipped where no source of it exists."""
    return _folder_with("cifar10", "weights")


@pytest.fixture(scope="session")
def cifar100_data() -> Path:
    """Folder that holds `cifar-100-binary/`; the test is skipped where no source of it exists."""
    return _folder_with("cifar100")


@pytest.fixture(scope="session")
def squad_data() -> Path:
    """Folder that holds `squad/`; the test is skipped where no source of it exists."""
    return _folder_with("squad")


@pytest.fixture(scope="session")
def tiny_imagenet() -> Path:
    """`tiny-imagenet-10/`, ten classes as folders; the test is skipped where no source of it exists."""
    return _folder_with("tiny-imagenet") / FOLDERS["tiny-imagenet"]


def _folder_with(*names: str) -> Path:
    """SPEQUANT_DATA, or the cache, with the sets called `names` in `FOLDERS`."""
    named = os.environ.get("SPEQUANT_DATA")
    if named:
        absent = _absent(Path(named), names)
        if absent:
            pytest.skip(f"SPEQUANT_DATA={named} lacks {', '.join(FOLDERS[name] for name in absent)}")
        return Path(named)
    if not UNPACK.is_file():
        pytest.skip(f"no data: SPEQUANT_DATA is not set and {UNPACK} is absent")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spequant" / "data"
    _unpack_once(cache, names)
    return cache


def _absent(folder: Path, names: tuple[str, ...]) -> list[str]:
    """Those of `names` whose folder is not below `folder`."""
    return [name for name in names if not (folder / FOLDERS[name]).is_dir()]


def _unpack_once(cache: Path, names: tuple[str, ...]) -> None:
    """Run `unpack.py` unless its result is there; xdist's workers queue at a lock and find it done."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        absent = _absent(cache, names)
        if not absent:
            return
        command = [sys.executable, str(UNPACK), str(cache), *absent]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{UNPACK} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")
