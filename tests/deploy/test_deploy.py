"""The whole way through the room: what is hard for integers, in every engine alike, and refused where none has it."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from spequant.deploy import Twin, integer_graph, lower, quant_graph
from spequant.deploy.compare import forced
from spequant.deploy.engines import ENGINES
from spequant.quantizers import PACT, SAWB
from support.clipping import skip_if_clipped
from support.integer_networks import NEEDS_ONNXRUNTIME, Joined, Mixed, prepared, unequal

pytestmark = NEEDS_ONNXRUNTIME


@pytest.mark.parametrize(("network", "shape"), [(Mixed, (64, 1, 8, 8)), (Joined, (32, 3, 8, 8))])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "qonnx"])
def test_two_signs_gammas_concatenation_and_groups_in_every_engine(engine, network, shape):
    pytest.importorskip(engine)
    x, start = torch.randn(shape), ENGINES[engine]
    model = prepared(network(), x, SAWB(3), PACT(3))
    program = lower(model, x[:1])
    assert program.islands() == []
    twin = Twin(program)(x)
    torch.testing.assert_close(twin, model(x), rtol=1e-3, atol=1e-3)
    if engine != "qonnx":  # which computes in float
        skip_if_clipped(program)
    graph = quant_graph(program) if engine == "qonnx" else integer_graph(program)
    (got,) = start(graph.SerializeToString(), 1)({"input": x.numpy()})
    np.testing.assert_allclose(got, twin.numpy(), rtol=1e-3, atol=1e-3)
    if engine != "qonnx":
        assert all(f.unequal == f.ties for f in forced(program, x, partial(start, threads=1)).values())


class Twice(nn.Module):
    residual_addition = True

    def forward(self, branch, shortcut):
        return branch + shortcut


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.add, self.b = nn.Linear(6, 6), Twice(), nn.Linear(6, 3)

    def forward(self, x):
        y = self.a(x)
        return self.b(torch.relu(self.add(y, y)))


def test_a_tensor_may_be_added_to_itself():
    x = torch.randn(64, 6)
    model = prepared(Doubled(), x, SAWB(3), PACT(3))
    program = lower(model, x[:1])
    assert not any(unequal(program, x).values())
    torch.testing.assert_close(Twin(program)(x), model(x), rtol=1e-3, atol=1e-3)
