"""Fixtures that all tests share: the data at hand, one thread, fixed seeds, one trained run. No tests here; builders of
models are in tests/support."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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

pytest_plugins = ["support.absent", "support.torchlib"]
pytest.register_assert_rewrite("support")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # what is not there is an error at once, not after a minute of retries
# xdist runs a worker per core: more threads than cores, here or in a process that a test starts, wait for each other
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"


@pytest.fixture(autouse=True)
def fixed_seed() -> None:
    """Start every test from the same state of torch's and numpy's global generators."""
    torch.manual_seed(0)
    np.random.seed(0)


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory) -> Path:
    """A finished run of `digits-w2a2-speq`, two epochs from `digits-float` beside it, made once a test run.

    All tests and all of xdist's workers read this one folder: copy it before you change anything in it. Settings:
    `DIGITS` below and `support.processor.END_BITS`. Checkpoints of steps 12 and 16 are kept.
    """
    base = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder = base / "digits"
    folder.mkdir(exist_ok=True)
    with _locked(folder / ".lock"):
        if not (folder / "digits-w2a2-speq" / "result.json").is_file():
            _train_digits(folder)
    return folder / "digits-w2a2-speq"


DIGITS = ["--train.batch-size", "128", "--train.threads", "1", "--train.no-compile", "--data.held-out", "200"]


def _train_digits(folder: Path) -> None:
    from spequant.app.cli import main
    from support.processor import END_BITS

    float_run, low = folder / "digits-float", folder / "digits-w2a2-speq"
    main(["train", "digits-float", *DIGITS, "--train.epochs", "3", "--out", str(float_run)])
    short = ["--train.epochs", "2", "--train.checkpoint-every", "6", *END_BITS]
    main(["train", "digits-w2a2-speq", *DIGITS, *short, "--network.weights", str(float_run), "--out", str(low)])


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Inside, no other process is: xdist's workers queue."""
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
    with _locked(cache / ".lock"):
        absent = _absent(cache, names)
        if not absent:
            return
        command = [sys.executable, str(UNPACK), str(cache), *absent]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{UNPACK} failed with status {done.returncode}:\n{done.stdout}{done.stderr}")
