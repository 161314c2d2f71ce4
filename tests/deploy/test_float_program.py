"""The float network of a program, as LiteRT computes it: the network without quantization."""

import pytest
import torch

import spequant
from spequant.deploy import lower
from spequant.deploy.engines import ENGINES
from spequant.deploy.float_program import float_program
from spequant.deploy.formats.tflite import tflite_graph
from spequant.deploy.outputs import outputs_by_name
from spequant.quantizers import LSQ
from support.edge_networks import EDGES
from support.integer_networks import prepared


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ESPCN", "detector like VGG-SSD"])
def test_functions_and_several_outputs_are_in_it(name):
    """Weights of 8 bits are nearly those of the network."""
    torch.manual_seed(0)
    network, x = EDGES[name].make().eval(), torch.randn(4, *EDGES[name].shape)
    model = prepared(network, x, LSQ(8), LSQ(8), between=8)
    program = float_program(lower(model, x[:1]))
    got = ENGINES["litert"](tflite_graph(program).data)({"input": x.numpy()})
    with torch.no_grad():
        expected = outputs_by_name(spequant.unprepare(model)(x), ("input",))
    for values, exact in zip(got, expected.values(), strict=True):
        assert float((torch.from_numpy(values) - exact).abs().max() / exact.std()) < 0.1
