"""The published ResNet-20, calibrated at a few bits on CIFAR-10."""

from pathlib import Path
from typing import Any

from torch import nn

import spequant
from spequant.data import Augment, ImageSet, load_cifar10, train_batches
from spequant.models import load_weights, resnet20
from spequant.quantizers import PACT, SAWB


def calibrated_resnet20(shared_data: Path, bits: int, **options: Any) -> tuple[nn.Module, ImageSet]:
    """(the network with weights and activations of `bits` bits, CIFAR-10's test set); options: of `prepare`."""
    train, test = load_cifar10(shared_data)
    network = resnet20()
    load_weights(network, shared_data / "weights" / "resnet20-12fca82f.th")
    model = spequant.prepare(network, weight=SAWB(bits), act=PACT(bits), **options)
    spequant.calibrate(model, train_batches(train, 128, seed=0, epoch=0, augment=Augment()))
    return model, test
