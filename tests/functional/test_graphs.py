"""Functions that are one node of torch.compile's graphs: with the values and gradients of plain calls."""

import pytest
import torch

from spequant.functional.graphs import OPERATORS, one_node
from support import graph_nodes
from support.forks import forked


def test_what_is_one_node():
    nodes = forked(graph_nodes.nodes)
    assert nodes.keys() == {"fake_quantize", "scale_gradient", "on_power_of_two", "SAWB", "LeastSquares", "powers"}
    for name, calls in nodes.items():
        assert sum(call.startswith("spequant_") for call in calls) == 1, (name, calls)
    assert len(nodes["fake_quantize"]) == len(nodes["scale_gradient"]) == 1


def test_values_and_gradients_are_those_of_plain_calls():
    same = forked(graph_nodes.gradients)
    assert len(same) == 8 and all(same.values()), same


def test_compiled_layers_compute_the_same_and_run_hooks():
    for kind, differences in forked(graph_nodes.hooked_layers).items():
        assert len(differences) == 2 and max(differences) < 1e-5, kind


def test_outside_of_compiling_the_function_itself_is_called():
    seen = []

    @one_node("(Tensor x) -> Tensor")
    def doubled_for_a_test(x):
        seen.append(x)
        return 2 * x

    x = torch.ones(2)
    assert doubled_for_a_test(x).tolist() == [2, 2] and seen[0] is x
    assert getattr(torch.ops, OPERATORS.ns).doubled_for_a_test(x).tolist() == [2, 2] and len(seen) == 2


def test_a_schema_that_is_none_is_refused():
    with pytest.raises(RuntimeError, match="arrow"):
        one_node("Tensor -> ")(torch.abs)
