"""What the processor of this machine does with 8-bit products: without VNNI or dot products it clips sums of two to
16 bits, so that engines and the twin differ in ops that `saturates` names. Those comparisons are left out, by name."""

from functools import cache
from importlib.util import find_spec

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import lower
from spequant.deploy.formats.onnx import op_graph
from spequant.deploy.grids import stored
from spequant.deploy.operations import Weighted
from spequant.deploy.program import Program
from spequant.deploy.twin import Twin
from spequant.quantizers import PACT, MinMax


@cache
def clips() -> bool:
    """Whether onnxruntime clips, found by trying: two products of the largest codes, convolution and matrix."""
    if find_spec("onnxruntime") is None:
        return False
    import onnxruntime

    x = torch.cat([torch.ones(1, 8, 4, 4), torch.zeros(1, 8, 4, 4)])
    networks = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False)), nn.Sequential(nn.Flatten(), nn.Linear(128, 8, bias=False))
    for network in networks:
        with torch.no_grad():
            next(network.parameters()).fill_(1.0)
        model = spequant.prepare(network, weight=MinMax(8), act=PACT(8))
        spequant.calibrate(model, [x], samples=2)
        program = lower(model.eval(), x[:1])
        values = Twin(program).everything(x)
        for op in program.ops:
            if isinstance(op, Weighted):
                (source,) = op.inputs
                session = onnxruntime.InferenceSession(op_graph(op).SerializeToString())
                (got,) = session.run(None, {"in0": stored(values[source], source.grid)})
                if abs(got - values[op].numpy()).max() > 1e-3 * float(values[op].abs().max()):
                    return True
    return False


def clipped(program: Program) -> set[str]:
    """Names of the ops whose sums this processor may clip."""
    return {op.name for op in program.ops if isinstance(op, Weighted) and op.saturates} if clips() else set()


def skip_if_clipped(program: Program) -> None:
    if names := clipped(program):
        pytest.skip(f"this processor clips 8-bit sums to 16 bits, as in {', '.join(sorted(names))}")
