"""Small networks with an integer form, quantized in every way that exports know; how tests prepare and run them."""

from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor, nn

import spequant
from spequant.deploy import Program, Twin, lower, quantize_biases
from spequant.deploy.formats.onnx import op_graph
from spequant.deploy.grids import stored
from spequant.deploy.operations import Input
from spequant.models.resnet_cifar import CifarResNet
from spequant.quantizers import LSQ, PACT, SAWB, DoReFa, LeastSquares, MinMax, percentile
from support.clipping import clipped

NEEDS_ONNXRUNTIME = pytest.mark.skipif(
    not (find_spec("onnx") and find_spec("onnxruntime")), reason="the extra deploy is not installed"
)
QUANTIZED = {
    "two bits": (SAWB(2), PACT(2), {}),
    "one bit": (SAWB(1), PACT(1), {}),
    "four bits": (SAWB(4), PACT(4), {}),
    "eight bits": (SAWB(8), PACT(8), {}),
    "lsq": (LSQ(2), LSQ(3), {"per_channel": True}),
    "float ends": (LeastSquares(2), MinMax(4), {"ends": None}),
    "dorefa": (DoReFa(3), DoReFa(3), {"ends": 7}),
}
"""{name: (weight, act, options) of `prepare`}"""


def small() -> CifarResNet:
    """ResNet-8, slim: seven convolutions, three additions, two of them with a shortcut of strides and zero channels."""
    return CifarResNet(1, in_channels=1, widths=(4, 6, 8))


class Shared(nn.Module):
    """One convolution called twice, at two resolutions."""

    def __init__(self):
        super().__init__()
        self.first, self.again, self.last = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4 * 16, 3)

    def forward(self, x):
        y = torch.relu(self.again(self.first(x)))
        y = torch.relu(self.again(nn.functional.max_pool2d(y, 2)))
        return self.last(torch.flatten(y, 1))


def prepared(network: nn.Module, x: Tensor, weight=None, act=None, **options) -> nn.Module:
    """`network` at two bits unless told otherwise, calibrated on `x` by a rule that is fast and clips some values, with
    biases on integer arithmetic's grid."""
    model = spequant.prepare(network, weight=weight or SAWB(2), act=act or PACT(2), **options)
    spequant.calibrate(model, [x], samples=len(x), rule=percentile(98.0))
    quantize_biases(model, x[:1])
    return model.eval()


@dataclass(frozen=True)
class Lowered:
    model: nn.Module
    program: Program
    x: Tensor

    @property
    def twin(self) -> Twin:
        return Twin(self.program)


@cache
def lowered(name: str) -> Lowered:
    """`small` as `QUANTIZED` has it, and the images it was calibrated on: made once a process, to be read alone."""
    weight, act, options = QUANTIZED[name]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = torch.randn(32, 1, 8, 8)
        model = prepared(small(), x, weight, act, **options)
    return Lowered(model, lower(model, x[:1]), x)


class Mixed(nn.Module):
    """A quantizer of both signs reads, beside each other, what a ReLU leaves and what none touched."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Conv2d(1, 4, 3), nn.Conv2d(1, 4, 3), nn.Conv2d(8, 4, 3), nn.Linear(16, 3)

    def forward(self, x):
        y = torch.cat([nn.functional.max_pool2d(torch.relu(self.a(x)), 1), self.b(x)], 1)
        return self.d(torch.flatten(nn.functional.max_pool2d(torch.relu(self.c(y)), 2), 1))


class Joined(nn.Module):
    """Concatenation, clamps, groups, max pooling; a negative, a vanishing and a tiny gamma."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm, self.pool = nn.BatchNorm2d(4), nn.MaxPool2d(3, 2, 1)
        self.c, self.d = nn.Conv2d(8, 8, 3, groups=2), nn.Linear(32, 5)
        self.norm.weight.data = torch.tensor([-0.7, 0.0, 1e-12, 0.9])
        self.norm.bias.data = torch.tensor([0.4, 0.6, 0.5, -0.1])

    def forward(self, x):
        y = torch.cat([torch.relu(self.norm(self.a(x))), self.b(x).clamp(0, 1)], 1)
        y = self.c(self.pool(y))
        return self.d(torch.flatten(y, 1))


def session(model, optimised=None):
    """onnxruntime's session of an ONNX model on one thread; optimised: where to write what it makes of the graph."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def unequal(program: Program, x: Tensor) -> dict[str, int]:
    """Codes of each op that onnxruntime, given the twin's inputs of it, computes otherwise; not of those whose sums
    this processor clips."""
    values, left_out = Twin(program).everything(x), clipped(program)
    found = {}
    for op in program.ops:
        if not isinstance(op, Input) and op.grid is not None and op.name not in left_out:
            names = {f"in{i}": source for i, source in enumerate(dict.fromkeys(op.inputs))}
            feed = {n: stored(values[s], s.grid) if s.grid else values[s].numpy() for n, s in names.items()}
            (got,) = session(op_graph(op)).run(None, feed)
            found[op.name] = int((got != stored(values[op], op.grid)).sum())
    return found
