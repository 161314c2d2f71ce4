"""What tests of methods share: a small network, its quantized copies, and numbers for equations written in numpy."""

import copy

import numpy as np
import pytest
import torch

import spequant
from reference import losses as literal
from spequant.models import CifarResNet
from spequant.quantizers import LSQ, MinMax, percentile


def small_network(in_channels=3):
    """ResNet-8 a quarter as wide: all kinds of layers that it has, a tenth of the time."""
    return CifarResNet(1, in_channels=in_channels, widths=(4, 8, 16))


def small_batch(samples=16):
    return torch.randn(samples, 3, 8, 8), torch.randint(0, 10, (samples,))


def calibrated(model, batch):
    """The prepared `model` in train mode, its ranges by a rule that does not search for them, which takes longest."""
    spequant.calibrate(model, [batch], samples=len(batch[0]), rule=percentile(97.0))
    return model.train()


def quantized(floating, batch, bits):
    """LSQ everywhere, residual additions at 8 bits."""
    return calibrated(spequant.prepare(floating, weight=LSQ(bits), act=LSQ(bits), residual=MinMax(8)), batch)


def numbers(logits):
    return logits.detach().double().numpy()


def cross_entropy(z, labels):
    return -np.log(literal.softmax(z)[np.arange(len(z)), labels.numpy()]).mean()


def logits(network, batch, *, train):
    """Of a copy, so that nothing is left behind."""
    return numbers(copy.deepcopy(network).train(train)(batch[0]))


def at(network, batch, policy, step=0):
    """The logits of a copy at the precision that `policy` draws at `step`."""
    network = copy.deepcopy(network)
    with spequant.precision(network, policy, step=step):
        return numbers(network(batch[0]))


def near(tensor, value):
    assert float(tensor.detach()) == pytest.approx(value, rel=1e-4, abs=1e-6)


def grads(network):
    """Of each parameter: whether a gradient reached it."""
    return [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters()]


def statistics(model):
    """Batch norm's running ones, copied."""
    return {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "tracked" in k}


def same(a, b):
    return all(torch.equal(v, b[k]) for k, v in a.items())


def gradients(model, method, batch):
    """{name: gradient} of a copy."""
    model = copy.deepcopy(model)
    method(model, batch).total.backward()
    return {n: p.grad for n, p in model.named_parameters()}
