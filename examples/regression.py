"""Regression at 3 bits: two values from six numbers, in float and then by SPEQ.

python examples/regression.py
"""

import argparse

import torch
from torch import nn

import spequant
from spequant.quantizers import LSQ
from spequant.train import evaluate

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=600)
steps = parser.parse_args().steps
torch.manual_seed(0)


def samples(count):
    """(inputs, targets): the second target has ten times the size of the first."""
    x = torch.rand(count, 6) * 2 - 1
    y = torch.stack([torch.sin(3 * x[:, 0]) + x[:, 1] * x[:, 2], 10 * (x[:, 3] ** 2 - x[:, 4])], dim=1)
    return x, y + torch.tensor([0.05, 0.5]) * torch.randn(count, 2)


test = [samples(1000)]
mean, deviation = (getattr(samples(10_000)[1], name)(0) for name in ("mean", "std"))


class Network(nn.Module):
    """It predicts standardised values, and scales them back at its end."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))

    def forward(self, x):
        return self.body(x) * deviation + mean


def relative(values, targets):
    """The loss on the targets: squared errors in deviations of each target, so that both count alike."""
    return ((values - targets) / deviation).square().mean()


# `scale`: by how much a teacher's value and the student's may differ, in the targets' unit.
task = spequant.Regression(criterion=relative, scale=deviation.tolist())

network = Network()
optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
for _ in range(steps):
    batch = samples(128)
    loss = task.loss(task.logits(network, batch), batch)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
floating = evaluate(network, test, task).figures
print(f"float: mean absolute error {floating['mean_absolute_error']:.3f}, R2 {floating['r2']:.1f} %")

model = spequant.prepare(network, weight=LSQ(3), act=LSQ(3))
spequant.calibrate(model, [samples(1024)])
calibrated = evaluate(model, test, task).figures
method = spequant.SPEQ(task=task)
optimizer = torch.optim.Adam(spequant.parameter_groups(model, lr=1e-3, weight_decay=0.0))
model.train()
for _ in range(steps):
    losses = method(model, samples(128))
    optimizer.zero_grad()
    losses.total.backward()
    optimizer.step()
low_bit = evaluate(model, test, task).figures
print(f"3 bits, calibrated: mean absolute error {calibrated['mean_absolute_error']:.3f}, R2 {calibrated['r2']:.1f} %")
print(f"3 bits, trained: mean absolute error {low_bit['mean_absolute_error']:.3f}, R2 {low_bit['r2']:.1f} %")
