#!/usr/bin/env python3
"""Processor time of a training step by where the teacher's answers come from, with the time to make its batch.

usage: soft_labels.py FOLDER WEIGHTS [--network resnet20] [--teacher resnet20] [--images 2560] [--rounds 20]

FOLDER holds CIFAR-10, WEIGHTS is the file of the float teacher; the student's weights are random, which costs the same.
W2A2, fp32, not compiled, batch 128, one thread. The rows take turns: per round, one step each. Prints medians of the
paired ratios to Retrain.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

import spequant
from spequant.data import Augment, ImageSet, SoftLabels, load_cifar10, make_soft_labels, train_batches
from spequant.methods import Method, SPEQDistill
from spequant.models import make_network
from spequant.models.weights import load_weights
from spequant.quantizers import PACT, SAWB

BATCH = 128


def endless(batches: Callable[..., Iterator[Any]]) -> Iterator[Any]:
    """The batches of one epoch after another."""
    for epoch in count():
        yield from batches(BATCH, seed=0, epoch=epoch)


def plain(train: ImageSet) -> Iterator[Any]:
    """Batches without answers."""
    return endless(lambda *size, **where: train_batches(train, *size, augment=Augment(), **where))


def step(method: Method, network: str, batches: Iterator[Any]) -> Callable[[], float]:
    """A function that does one step and returns its processor time in seconds."""
    model = spequant.prepare(make_network(network, classes=10), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [next(batches)[:2]], samples=BATCH)
    optimizer = torch.optim.SGD(spequant.parameter_groups(model.train(), lr=1e-3, weight_decay=1e-4), momentum=0.9)

    def done() -> float:
        start = time.process_time()
        method(model, next(batches)).total.backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.process_time() - start

    return done


def rows(teacher: torch.nn.Module, network: str, train: ImageSet, labels: SoftLabels) -> dict[str, Callable[[], float]]:
    live, stored = spequant.Distill(teacher), spequant.Distill()
    kinds: dict[str, tuple[Method, Iterator[Any]]] = {
        "retrain": (spequant.Retrain(), plain(train)),
        "distill, live": (live, plain(train)),
        "distill, stored": (stored, endless(labels.batches)),
        "speq": (spequant.SPEQ(), plain(train)),
        "speq-distill, live": (SPEQDistill(spequant.SPEQ(), live), plain(train)),
        "speq-distill, stored": (SPEQDistill(spequant.SPEQ(), stored), endless(labels.batches)),
    }
    return {name: step(method, network, batches) for name, (method, batches) in kinds.items()}


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("weights")
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--teacher", default="resnet20")
    parser.add_argument("--images", type=int, default=2560)
    parser.add_argument("--rounds", type=int, default=20)
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train = load_cifar10(settings.folder)[0].part(slice(0, settings.images))
    teacher = make_network(settings.teacher, classes=10)
    load_weights(teacher, settings.weights)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "labels.safetensors"
        start = time.process_time()
        labels = make_soft_labels(teacher.eval(), train, Augment(), path, slots=2)
        crops = 1e3 * (time.process_time() - start) / (labels.slots * len(train))
        print(f"a crop of the file: {crops:.2f} ms, {path.stat().st_size / labels.slots / len(train):.1f} bytes")
        steps = rows(teacher, settings.network, train, labels)
        times: dict[str, list[float]] = {name: [] for name in steps}
        for number in range(settings.rounds + 2):
            for name, done in steps.items():
                seconds = done()
                if number >= 2:  # the first fill caches
                    times[name].append(seconds)
    for name, values in times.items():
        ratio = statistics.median(a / b for a, b in zip(values, times["retrain"], strict=True))
        print(f"{name:22} {1e3 * statistics.median(values):7.1f} ms  {ratio:.3f}")


if __name__ == "__main__":
    main(sys.argv[1:])
