"""SPEQ's steps through torch.compile against eager mode. For a process of its own, whose counters start at zero."""

import copy
import os
from collections.abc import Callable

import torch
import torch._dynamo
import torch.nn.functional as F
from torch import nn

import spequant
from spequant import quantizers
from spequant.models import resnet8
from spequant.models.residual import ResidualAdd
from spequant.quantizers import LSQ, PACT, SAWB


class Small(nn.Module):
    """Two layers, batch norm, an addition."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3)
        self.add, self.linear = ResidualAdd(), nn.Linear(3, 10)

    def forward(self, x):
        return self.linear(F.relu(self.add(self.bn(self.conv(x)), x)).mean((2, 3)))


def small() -> nn.Module:
    """SAWB and PACT, LSQ of weights and activations, and of the addends MinMax at 8 bits."""
    ends = {"ends": (SAWB(2), PACT(2)), "overrides": {"linear": (LSQ(2), LSQ(2))}}
    return spequant.prepare(Small(), weight=SAWB(2), act=PACT(2), residual=quantizers.MinMax(8), **ends)


def whole(weight: str, act: str) -> nn.Module:
    """ResNet-8 with quantizers of these names."""
    return spequant.prepare(resnet8(), weight=getattr(quantizers, weight)(2), act=getattr(quantizers, act)(2))


def graphs(steps: int, make: Callable[..., nn.Module], *names: str) -> int:
    """How many there are after `steps` steps with a random draw each of the network `make(*names)`. AssertionError: the
    first step's loss, gradients or statistics are others than in eager mode."""
    from torch._inductor import config

    config.compile_threads, config.cpp.vec_isa_ok = 1, True  # no processes beside this one, nothing compiled on trial
    # No value of these lies on a rounding tie, which eager and compiled sums would take either way: outputs of
    # convolutions and batch norm moved by 1e-7 leave the loss of a step as it is (seed 0: they move it by .01). Nor are
    # they the calibration's own images, which hold one.
    torch.manual_seed(4)
    images, labels = torch.randn(2, 16, 3, 8, 8), torch.randint(0, 10, (16,))
    batch = images[1], labels
    model = make(*names)
    spequant.calibrate(model, [images[0]], samples=16)
    eager = copy.deepcopy(model)
    compiled = torch.compile(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001)
    methods = spequant.SPEQ(), spequant.SPEQ()
    for step in range(steps):
        losses = methods[0](compiled, batch)
        losses.total.backward()
        if step == 0:
            other = methods[1](eager, batch)
            other.total.backward()
            assert abs(float(losses.total.detach() - other.total.detach())) < 1e-4, (losses, other)
            for (name, p), q in zip(model.named_parameters(), eager.parameters(), strict=True):
                gap, size = float((p.grad - q.grad).norm()), float(q.grad.norm())
                assert gap < 1e-3 * size + 1e-6, (name, gap, size)
            for (name, a), b in zip(model.named_buffers(), eager.buffers(), strict=True):
                assert torch.allclose(a, b, atol=1e-5), name
        optimizer.step()
        optimizer.zero_grad()
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def read_from_disk(cache: str) -> int:
    """How many graphs of a step of `small` come whole out of torch's cache in the folder `cache`."""
    from torch._inductor import config

    config.compile_threads, config.cpp.vec_isa_ok = 1, True
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
    torch.manual_seed(4)
    images, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))
    model = small()
    spequant.calibrate(model, [images], samples=16)
    spequant.SPEQ()(torch.compile(model), (images, labels)).total.backward()
    return torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"]
