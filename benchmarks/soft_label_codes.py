#!/usr/bin/env python3
"""What classes and bits of stored answers lose: mean KL divergence from the full softmax, in nats.

usage: soft_label_codes.py FOLDER WEIGHTS [--network resnet20] [--cifar100] [--images 5000] [--temperatures 1 4]

FOLDER holds CIFAR-10 or CIFAR-100, WEIGHTS is the file or run of the float teacher. One crop per image. A code is the
rounded share of a class (linear), its root (root: what the library stores, in 8 bits) or its logarithm down to -12; a
code of 0 is read as a quarter. Exact: only the rest is spread evenly.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from spequant.app.runs.folder import weight_file
from spequant.data import Augment, load_cifar10, load_cifar100, train_batches
from spequant.models import make_network
from spequant.models.weights import load_weights

KINDS = (("exact", 0), ("linear", 8), ("logarithm", 8), ("root", 8), ("root", 6), ("root", 4))
DEEPEST = 12.0


def rounded(shares: Tensor, kind: str, bits: int) -> Tensor:
    """Shares as they are read from codes of so many bits."""
    levels = 2**bits - 1
    if kind == "linear":
        return (shares * levels).round().clamp_min(0.25) / levels
    if kind == "root":
        return ((shares.sqrt() * levels).round().clamp_min(0.25) / levels).square()
    if kind == "logarithm":
        depth = (-shares.clamp_min(1e-30).log()).clamp(0, DEEPEST)
        return (-(depth * levels / DEEPEST).round() * DEEPEST / levels).exp()
    return shares


def lost(shares: Tensor, top: int, kind: str, bits: int) -> float:
    """Mean KL divergence, in nats, of the `top` largest shares in codes and the rest spread evenly."""
    largest, classes = shares.topk(top)
    rest = rounded((1 - largest.sum(-1, keepdim=True)).clamp_min(0), kind, bits)
    count = shares.shape[1]
    read = (rest / max(1, count - top)).repeat(1, count).scatter(1, classes, rounded(largest, kind, bits))
    read = read / read.sum(-1, keepdim=True)
    logs = shares.clamp_min(1e-300).log() - read.clamp_min(1e-300).log()
    return float((shares * logs).sum(-1).mean())


@torch.no_grad()
def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("weights", type=Path)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--cifar100", action="store_true")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--temperatures", type=float, nargs="+", default=[1.0, 4.0])
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    load = load_cifar100 if settings.cifar100 else load_cifar10
    train = load(settings.folder)[0].part(slice(0, settings.images))
    network = make_network(settings.network, classes=train.classes)
    load_weights(network.eval(), weight_file(settings.weights))
    logits = [network(images) for images, _ in train_batches(train, 250, seed=0, epoch=0, augment=Augment())]
    for temperature in settings.temperatures:
        shares = torch.softmax(torch.cat(logits).double() / temperature, -1)
        entropy = -(shares * shares.clamp_min(1e-300).log()).sum(-1).mean()
        print(f"T {temperature:g}, entropy {entropy:.2f}: top, then {', '.join(f'{k} {b}' for k, b in KINDS)}")
        for top in (n for n in (1, 2, 3, 5, 10, 20, 50, 100) if n <= train.classes):
            print(top, *(f"{max(0.0, lost(shares, top, *kind)):.1e}" for kind in KINDS))


if __name__ == "__main__":
    main(sys.argv[1:])
