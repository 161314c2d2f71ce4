"""Trains, kills the training with SIGKILL at random moments and at each point of writing a checkpoint, resumes it, and
compares with a run that was left alone. For a process of its own, since it forks: each training is a child that need
not import anything."""

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from itertools import count
from pathlib import Path

import torch
from safetensors.torch import load_file

from spequant import files
from spequant.app.recipes import RECIPES
from spequant.app.runs import run


def recipe():
    made = RECIPES["digits-w2a2-speq"]()
    train = replace(made.train, epochs=2, checkpoint_every=3, ema=0.9, freeze_threshold=0.005, device="cpu")
    data = replace(made.data, images=512, held_out=97)
    return replace(made, train=train, network=replace(made.network, weights=None), data=data)


def child(work: Callable[[], object]) -> int:
    """Fork; the child does `work` and ends."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work()
        status = 0
    finally:
        os._exit(status)


def until(pid: int, seconds: float | None = None) -> int:
    """Wait for the child, kill it after `seconds`; its wait status."""
    if seconds is not None:
        time.sleep(seconds)
        os.kill(pid, signal.SIGKILL)
    return os.waitpid(pid, 0)[1]


def dying_at(point: int) -> None:
    """From now on, this process dies at its `point`-th step of writing files: before a sync, a rename or a removal."""
    count = 0

    def counted(original):
        def call(*args, **kwargs):
            nonlocal count
            count += 1
            if count == point:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*args, **kwargs)

        return call

    files.os.fsync, files.os.rename, files.os.replace = map(counted, (os.fsync, os.rename, os.replace))
    files.shutil.rmtree = counted(files.shutil.rmtree)


def equal(a: Path, b: Path) -> bool:
    """Weights bit for bit, figures and rows of training (times aside)."""
    first, second = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    weights = first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)
    return weights and rows(a) == rows(b)


def rows(folder: Path) -> list[dict]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    times = ("seconds", "images_per_second")
    return [
        {k: v for k, v in row.items() if k not in times} for row in found if row["kind"] not in ("start", "resumed")
    ]


def killed(folder: Path, kills: int, points: Iterable[int] | None) -> list[dict]:
    """Of each trial: name, whether it was killed, whether it ended as the run left alone. `kills` at random moments,
    then one at each of `points` of writing, None: at all that there are."""
    alone = folder / "alone"
    start = time.perf_counter()
    run(recipe(), alone)  # and imports what it needs, which the forks then have
    seconds = time.perf_counter() - start
    draw = random.Random(0)
    trials = []

    def trial(name: str, work: Callable[[], object], after: float | None) -> bool:
        out = folder / name
        status = until(child(work), after)
        killed = os.WIFSIGNALED(status)
        if killed:
            assert until(child(lambda: run(recipe(), out, resume=True))) == 0, name
        else:
            assert status == 0, name
        trials.append({"name": name, "killed": killed, "equal": equal(alone, out)})
        return killed

    for i in range(kills):
        out, after = folder / f"kill{i}", draw.uniform(0.1, 0.9) * seconds
        while not trial(out.name, lambda out=out: run(recipe(), out), after):  # faster than the one that was timed
            trials.pop()
            shutil.rmtree(out)
            after /= 2
    for point in count(1) if points is None else points:
        out = folder / f"point{point}"

        def work(out=out, point=point) -> None:
            dying_at(point)
            run(recipe(), out)

        if not trial(out.name, work, None):  # the run had fewer points than that
            trials.pop()
            break
    return trials
