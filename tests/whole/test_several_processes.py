"""Training on several processes (gloo, on the CPU): what it means on one, also after one of them is killed."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from spequant.train.checkpoint import checkpoints
from support.forks import Fork
from support.ranks import found

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def launch(world: int) -> list[dict]:
    """What each of `world` processes of support/ranks.py found; one of them is without any launcher's variables."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    ranks = [{**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {} for rank in range(world)]
    return [fork.result() for fork in [Fork(found, here) for here in ranks]]


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_several_processes_mean_the_same_as_one(world):
    (one,), (several, *_) = launch(1), launch(world)
    assert (one["world"], several["world"]) == (1, world)
    # At 2 bits sums that round otherwise may put a value near a tie on the other code: one of them moves the loss 2e-5.
    # At the float network's rate one weight's tie would lead elsewhere within steps: Retrain's is low.
    for arm, rounding in (("float", 1e-5), ("retrain", 1e-4)):
        for a, b in zip(one[arm]["losses"], several[arm]["losses"], strict=True):
            assert b == pytest.approx(a, rel=rounding)
        # abs: how far a few numbers of about 1 went is known to their fp32 rounding, some 1e-7 each
        assert several[arm]["moved"] == pytest.approx(one[arm]["moved"], rel=1e-3, abs=5e-7)
        assert several[arm]["accuracy"] == pytest.approx(one[arm]["accuracy"], abs=0.4)  # two images of 500
    for arm in ("float", "retrain", "accumulated", "unsynchronised", "speq"):
        assert several[arm]["equal"], f"{arm}: weights differ by rank"
    # Batch norm without synchronisation, or over half a batch, is another network.
    assert several["unsynchronised"]["losses"][0] != pytest.approx(one["unsynchronised"]["losses"][0], rel=1e-3)
    # SPEQ: the student's first pass is the same, the teachers' draws are each rank's own.
    assert several["speq"]["losses"][0][1] == pytest.approx(one["speq"]["losses"][0][1], rel=1e-3)
    assert len({tuple(draw) for draw in several["speq"]["draws"]}) == world
    # Calibration from parts of the samples: the same everywhere, and what one process finds but for its sampling.
    a, b = one["calibrated"], several["calibrated"]
    assert b["equal"]
    eight = {n for n in a["ranges"] if ".add." in n or n in ("conv1", "linear")}  # a few large values decide those
    for name, clip in a["ranges"].items():
        assert b["ranges"][name] == pytest.approx(clip, rel=0.15 if name in eight else 0.03), name
    assert b["means"] == pytest.approx(a["means"], rel=1e-2, abs=1e-3)


def train(folder: Path, *arguments: str, processes: int, launcher: Sequence[str] = ()) -> subprocess.Popen:
    """A run under way, started by `launcher`, by default torchrun."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    start = [sys.executable, *((launcher or torchrun) if processes > 1 else ())]
    command = [*start, "-m", "spequant", "train", "digits-w2a2-speq", "--train.device", "cpu", "--out", str(folder)]
    command += ["--train.epochs", "5", "--network.weights", "None", *arguments]
    return subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after", "compiled"), [(2, 1, False), (1, 2, False), (2, 2, True)])
def test_a_killed_rank_ends_the_run_which_resumes_on_any_number(before, after, compiled, tmp_path):
    folder = tmp_path / "run"
    options = ["--train.compile"] if compiled else []
    launched = train(folder, *options, processes=before)
    while not checkpoints(folder / "checkpoints"):
        assert launched.poll() is None, launched.communicate()[0]
        time.sleep(0.05)
    victim = launched.pid
    if before > 1:
        workers = subprocess.run(["pgrep", "-P", str(victim)], capture_output=True, text=True, check=True).stdout
        victim = int(workers.split()[-1])
    killed = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    said, _ = launched.communicate(timeout=60)
    assert launched.returncode != 0 and time.monotonic() - killed < 60
    assert ("Signal 9 (SIGKILL)" in said or before == 1) and not (folder / "result.json").exists()
    resumed = train(folder, "--resume", *options, processes=after)
    said, _ = resumed.communicate()
    assert resumed.returncode == 0, said
    assert json.loads((folder / "result.json").read_text())["test_accuracy"] > 50
    starts = json.loads((folder / "environment.json").read_text())
    assert [s["processes"] for s in starts] == [before, after]


@pytest.mark.slow
def test_all_processes_name_the_layers_of_a_run_that_goes_wrong(tmp_path):
    options = ["--train.lr", "1e30", "--train.no-compile"]
    said, _ = train(tmp_path / "run", *options, processes=2).communicate(timeout=200)
    reason = (tmp_path / "run" / "diverged.txt").read_text().strip()
    # conv1 has 8 bits, and the largest weight as clip, which is finite; SAWB's clip at 2 bits has squares of 1e30 in it
    assert "(step 2 of the run); the first to go: activations that leave layer1.0.conv1" in reason
    assert said.count("from step 0 to find the layer") == 1 and said.count(f"spequant train: {reason}") == 2


@pytest.mark.slow
def test_accelerate_launch_starts_several_processes_on_a_cpu(tmp_path):
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2")
    launched = train(tmp_path / "run", processes=2, launcher=launcher)
    said, _ = launched.communicate(timeout=200)
    assert launched.returncode == 0, said
    (start,) = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert start["processes"] == 2
    assert json.loads((tmp_path / "run" / "result.json").read_text())["test_accuracy"] > 50
