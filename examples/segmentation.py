"""Semantic segmentation at 3 bits: discs and squares on noise, in float and then by SPEQ.

python examples/segmentation.py

A network of torchvision (`lraspp_mobilenet_v3_large(num_classes=3)`) takes the place of `network` as it is.
"""

import argparse

import torch
from torch import nn

import spequant
from spequant.quantizers import LSQ
from spequant.train import evaluate

SIDE, DISC, SQUARE, UNKNOWN = 32, 1, 2, 255

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
steps = parser.parse_args().steps
torch.manual_seed(0)


def samples(count):
    """(images, masks): a class per pixel, and 255 at the border, which is left out."""
    images, masks = 0.3 * torch.randn(count, 3, SIDE, SIDE), torch.zeros(count, SIDE, SIDE, dtype=torch.int64)
    rows, columns = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    for image, mask in zip(images, masks, strict=True):
        for kind in (DISC, SQUARE):
            y, x, radius = torch.randint(6, SIDE - 6, (2,)).tolist() + torch.randint(3, 7, (1,)).tolist()
            down, right = (rows - y).abs(), (columns - x).abs()
            inside = down**2 + right**2 < radius**2 if kind == DISC else torch.maximum(down, right) < radius
            image[:, inside] += torch.rand(3, 1) + 0.5
            mask[inside] = kind
        mask[[0, -1]] = mask[:, [0, -1]] = UNKNOWN
    return images, masks


def convolution(inputs, outputs, dilation=1):
    layers = nn.Conv2d(inputs, outputs, 3, padding=dilation, dilation=dilation, bias=False), nn.BatchNorm2d(outputs)
    return nn.Sequential(*layers, nn.ReLU())


network = nn.Sequential(
    *[convolution(3, 16), convolution(16, 16), convolution(16, 16, 2), convolution(16, 16, 4)], nn.Conv2d(16, 3, 1)
)
task = spequant.Segmentation(ignored=UNKNOWN)
train, test = samples(256), [samples(64)]


def batch():
    chosen = torch.randint(len(train[0]), (16,))
    return train[0][chosen], train[1][chosen]


optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
for _ in range(steps):
    images, masks = batch()
    loss = task.loss(task.logits(network, (images, masks)), (images, masks))
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print(f"float: mean IoU {evaluate(network, test, task).figures['mean_iou']:.1f} %")

model = spequant.prepare(network, weight=LSQ(3), act=LSQ(3))
spequant.calibrate(model, [batch() for _ in range(4)], samples=64)
print(f"3 bits, calibrated: mean IoU {evaluate(model, test, task).figures['mean_iou']:.1f} %")
method = spequant.SPEQ(task=task)
optimizer = torch.optim.Adam(spequant.parameter_groups(model, lr=3e-3, weight_decay=0.0))
model.train()
for _ in range(steps):
    losses = method(model, batch())
    optimizer.zero_grad()
    losses.total.backward()
    optimizer.step()
print(f"3 bits, trained: mean IoU {evaluate(model, test, task).figures['mean_iou']:.1f} %")
