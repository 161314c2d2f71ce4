#!/usr/bin/env python3
"""ResNet-20 after calibration alone, with free scales and with powers of two: five pairs, each of 1,024 other images.

usage: calibrated_powers.py FOLDER WEIGHTS [--bits 4] [--test 2000]

FOLDER holds CIFAR-10, WEIGHTS is the file of the float network.
The images are the first 5,120 training images. Prints a line of CSV for each of the ten networks.
"""

import argparse
import sys
from collections.abc import Sequence

import torch
from torch import Tensor, nn

import spequant
from spequant.data import eval_batches, load_cifar10
from spequant.models import resnet20
from spequant.models.weights import load_weights
from spequant.quantizers import LSQ

PAIRS, IMAGES = 5, 1024


Batches = Sequence[tuple[Tensor, Tensor]]


def calibrated(network: nn.Module, batches: Batches, bits: int, power_of_two: bool) -> nn.Module:
    """`network` with LSQ at `bits` bits, its ends and addends at 8, calibrated on `batches`."""
    lsq = LSQ(bits, power_of_two=power_of_two)
    model = spequant.prepare(network, weight=lsq, act=lsq)
    spequant.calibrate(model, batches, samples=sum(len(images) for images, _ in batches))
    return model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, batches: Batches) -> float:
    """Of `batches`, in per cent."""
    right = sum(int((model(images).argmax(1) == labels).sum()) for images, labels in batches)
    return 100 * right / sum(len(labels) for _, labels in batches)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("weights")
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--test", type=int, default=2000)
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, test = load_cifar10(settings.folder)
    tests = list(eval_batches(test.part(slice(0, settings.test)), 500))
    network = resnet20()
    load_weights(network, settings.weights)
    print("bits,arm,pair,images,accuracy")
    print(f"32,float,,{settings.test},{accuracy(network.eval(), tests):.2f}", flush=True)
    for pair in range(PAIRS):
        batches = list(eval_batches(train.part(slice(pair * IMAGES, (pair + 1) * IMAGES)), 256))
        for arm, power_of_two in {"free scales": False, "powers of two": True}.items():
            share = accuracy(calibrated(network, batches, settings.bits, power_of_two), tests)
            print(f"{settings.bits},{arm},{pair},{settings.test},{share:.2f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
