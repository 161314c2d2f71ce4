"""Object detection at 4 bits: torchvision's SSD over a small backbone, on made-up boxes. Needs 'spequant[vision]'.

python examples/detection.py

Any detector of torchvision takes the place of `network`, e.g. ssdlite320_mobilenet_v3_large or fasterrcnn_resnet50_fpn.
With torchmetrics and pycocotools ('spequant[metrics]') the figures also have COCO's mean average precision, `map`.
"""

import argparse

import torch
from torch import nn
from torchvision.models.detection.anchor_utils import DefaultBoxGenerator
from torchvision.models.detection.ssd import SSD

import spequant
from spequant.quantizers import LSQ
from spequant.train import evaluate

SIDE, CLASSES = 64, 3  # the background, dark and bright squares

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=400)
steps = parser.parse_args().steps
torch.manual_seed(0)


def samples(count):
    """(images, targets): two squares per image, of 12 to 24 pixels."""
    images, targets = 0.5 + 0.05 * torch.randn(count, 3, SIDE, SIDE), []
    for image in images:
        side = torch.randint(12, 25, (2,))
        corner = (torch.rand(2, 2) * (SIDE - side[:, None])).long()
        labels = torch.randint(1, CLASSES, (2,))
        for (x, y), width, label in zip(corner.tolist(), side.tolist(), labels.tolist(), strict=True):
            image[:, y : y + width, x : x + width] = 0.1 if label == 1 else 0.9
        boxes = torch.cat([corner, corner + side[:, None]], dim=1).float()
        targets.append({"boxes": boxes, "labels": labels})
    return list(images), targets


class Backbone(nn.Module):
    """Features at an eighth of the size."""

    def __init__(self):
        super().__init__()
        self.out_channels = [32]  # of each level; one number for RetinaNet and the like
        self.layers = nn.Sequential()
        for i, o, stride in [(3, 16, 2), (16, 32, 2), (32, 32, 2), (32, 32, 1)]:
            self.layers.extend([nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()])

    def forward(self, x):
        return {"0": self.layers(x)}


network = SSD(Backbone(), DefaultBoxGenerator([[]], scales=[0.25, 0.35], steps=[8]), (SIDE, SIDE), CLASSES)
task, test = spequant.Detection(), [samples(64)]
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
for _ in range(steps):
    loss = task.loss(task.logits(network, batch := samples(8)), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
print("float:", {name: round(value, 1) for name, value in evaluate(network, test, task).figures.items()})

model = spequant.prepare(network, weight=LSQ(4), act=LSQ(4), residual=None)
spequant.calibrate(model, [samples(16) for _ in range(4)], samples=64, run=task.logits)  # run: with the targets
print("4 bits, calibrated:", {name: round(value, 1) for name, value in evaluate(model, test, task).figures.items()})
method = spequant.SPEQ(task=task)
optimizer = torch.optim.Adam(spequant.parameter_groups(model, lr=1e-3, weight_decay=0.0))
model.train()
for _ in range(steps):
    losses = method(model, samples(8))
    optimizer.zero_grad()
    losses.total.backward()
    optimizer.step()
print("4 bits, trained:", {name: round(value, 1) for name, value in evaluate(model, test, task).figures.items()})
