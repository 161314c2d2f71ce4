#!/usr/bin/env python3
"""What few crops per image cost: a W2A2 ResNet-8, from random weights, that learns from ResNet-20's stored answers.

usage: soft_label_slots.py FOLDER WEIGHTS [--slots 1 2 4 8 24] [--seed 0] [--images 1280] [--epochs 24]

FOLDER holds CIFAR-10, WEIGHTS is the file of the float ResNet-20. The first images of the training set, batch 128,
labels and KL with weight 2; with as many slots as epochs no crop comes twice. Prints the mean KL divergence from the
teacher on 2,000 test images, in nats, the accuracy there, and the KL divergence in the last epoch of training.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.data import Augment, ImageSet, SoftLabels, eval_batches, load_cifar10, make_soft_labels
from spequant.models import make_network
from spequant.models.weights import load_weights
from spequant.quantizers import PACT, SAWB

BATCH, LR, WEIGHT = 128, 0.08, 2.0


def trained(labels: SoftLabels, epochs: int, seed: int) -> tuple[nn.Module, float]:
    """The network, in eval mode, and its mean distillation loss in the last epoch."""
    torch.manual_seed(seed)
    model = spequant.prepare(make_network("resnet8", classes=10), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [next(labels.batches(BATCH, seed=seed, epoch=0))[:2]], samples=BATCH)
    method, groups = spequant.Distill(weight=WEIGHT), spequant.parameter_groups(model.train(), lr=LR, weight_decay=1e-4)
    optimizer = torch.optim.SGD(groups, momentum=0.9)
    steps = len(labels.data) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LR, total_steps=epochs * steps)
    last = 0.0
    for epoch in range(epochs):
        for batch in labels.batches(BATCH, seed=seed, epoch=epoch):
            losses = method(model, batch)
            losses.total.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            last += float(losses.distill.detach()) / steps if epoch == epochs - 1 else 0.0
    spequant.reestimate_batch_norm(model, [batch[:2] for batch in labels.batches(BATCH, seed=9, epoch=0)])
    return model.eval(), last


@torch.no_grad()
def measured(model: nn.Module, teacher: nn.Module, test: ImageSet) -> tuple[float, float]:
    """(KL divergence from the teacher in nats, accuracy in per cent)"""
    divergence = right = 0.0
    for images, labels in eval_batches(test, 250):
        logs, full = (network(images).log_softmax(-1) for network in (model, teacher))
        divergence += float(F.kl_div(logs, full, log_target=True, reduction="sum"))
        right += int((logs.argmax(1) == labels).sum())
    return divergence / len(test), 100 * right / len(test)


def main(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder")
    parser.add_argument("weights")
    parser.add_argument("--slots", type=int, nargs="+", default=[1, 2, 4, 8, 24])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--images", type=int, default=1280)
    parser.add_argument("--epochs", type=int, default=24)
    settings = parser.parse_args(arguments)
    torch.set_num_threads(1)
    train, test = load_cifar10(settings.folder)
    train, test = train.part(slice(0, settings.images)), test.part(slice(0, 2000))
    teacher = make_network("resnet20", classes=10)
    load_weights(teacher.eval(), settings.weights)
    print("slots,seed,kl,accuracy,train_kl")
    for slots in settings.slots:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "labels.safetensors"
            labels = make_soft_labels(teacher, train, Augment(), path, slots=slots, seed=settings.seed)
            model, last = trained(labels, settings.epochs, settings.seed)
        kl, accuracy = measured(model, teacher, test)
        print(f"{slots},{settings.seed},{kl:.4f},{accuracy:.2f},{last:.4f}", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
