"""Weights are quantized once while a network is exported."""

from threading import Thread

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import lower
from spequant.deploy.weights_once import weights_once
from spequant.layers import weight_quantizers
from spequant.quantizers import PACT, SAWB


class Counting(SAWB):
    """SAWB that counts how often it follows from a weight."""

    computed = 0

    def bounds(self, x):
        type(self).computed += 1
        return super().bounds(x)


@pytest.fixture
def model():
    network, x = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), torch.randn(8, 6)
    model = spequant.prepare(network, weight=Counting(4), act=PACT(4))
    spequant.calibrate(model, [x], samples=8)
    return model.eval()


def count(run):
    Counting.computed = 0
    run()
    return Counting.computed


@torch.no_grad()
def test_a_weight_is_quantized_once_and_another_one_anew(model):
    x = torch.randn(2, 6)
    out, layers = model(x), len(weight_quantizers(model))
    with weights_once(model):
        assert count(lambda: [model(x) for _ in range(3)]) == layers and torch.equal(model(x), out)
        model[0].weight = nn.Parameter(model[0].layer.weight + 1)
        assert count(lambda: model(x)) == 1 and not torch.equal(model(x), out)
    assert all(q.watch is None for q in weight_quantizers(model).values())
    assert count(lambda: [model(x) for _ in range(3)]) == 3 * layers


def test_another_thread_trains_meanwhile(model):
    x, gradients = torch.randn(2, 6), []

    def step():
        model(x).sum().backward()
        gradients.append(model[0].layer.weight.grad)

    with weights_once(model), torch.no_grad():
        model(x)
        thread = Thread(target=step)
        thread.start()
        thread.join()
    assert gradients and gradients[0] is not None and gradients[0].any()


def test_an_export_does_not_quantize_them_by_the_batch(model, tmp_path):
    pytest.importorskip("onnxruntime")
    x = torch.randn(8, 6)
    few = count(lambda: spequant.export(model, tmp_path / "a.onnx", [x]))
    many = count(lambda: spequant.export(model, tmp_path / "a.onnx", x.split(2)))
    assert many == few == count(lambda: lower(model, x[:1]))
