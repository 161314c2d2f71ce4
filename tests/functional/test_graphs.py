"""Functions that are one node of torch.compile's graphs: with the values and gradients of plain calls."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx

from spequant.functional import fake_quantize, on_power_of_two, scale_gradient
from spequant.functional.graphs import OPERATORS, one_node
from spequant.quantizers import SAWB, LeastSquares
from spequant.quantizers.base import level_tensor
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


def test_tracing_that_asks_for_shapes_does_not_compute():
    seen = []

    @one_node("(Tensor x) -> Tensor", like=lambda x: x + 1)
    def tripled_for_a_test(x):
        seen.append(x)
        return 3 * x

    operator = getattr(torch.ops, OPERATORS.ns).tripled_for_a_test
    with FakeTensorMode() as mode:
        assert operator(mode.from_tensor(torch.ones(2))).shape == (2,) and not seen
    graph = make_fx(operator, tracing_mode="fake")(torch.ones(2))
    assert len(seen) == 1 and graph(torch.ones(2)).tolist() == [3, 3]  # kernels are made of the function
    assert operator(torch.ones(2)).tolist() == [3, 3]


def like_the_result(function, *inputs):
    """Whether what tracing sees of a call has the shape, layout, type and need of gradient of its result."""
    expected = function(*inputs)
    with FakeTensorMode() as mode:
        fakes = [mode.from_tensor(i) if isinstance(i, torch.Tensor) else i for i in inputs]
        seen = function(*fakes)
    return (
        all(getattr(seen, what) == getattr(expected, what) for what in ("shape", "dtype", "requires_grad"))
        and seen.stride() == expected.stride()
    )


@pytest.fixture
def as_in_tracing(monkeypatch):
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("learned", ["x", "low", "high", ""])
@pytest.mark.parametrize("shape", [(), (4, 1, 1, 1)])
def test_what_tracing_sees_of_fake_quantization(as_in_tracing, dtype, learned, shape):
    x = torch.randn(4, 3, 5, 2, dtype=dtype).to(memory_format=torch.channels_last).requires_grad_(learned == "x")
    low = torch.full(shape, -1.0, requires_grad=learned == "low")
    high = torch.full(shape, 1.0, requires_grad=learned == "high")
    assert like_the_result(fake_quantize, x, low, high, level_tensor(4))
    assert learned == "low" or like_the_result(
        lambda *given: fake_quantize(given[0], None, *given[1:]), x, high, level_tensor(4)
    )
    assert like_the_result(scale_gradient, x, 0.5)
    for end in range(2):
        assert like_the_result(
            lambda *given, end=end: on_power_of_two(*given)[end], low, high, level_tensor(4), level_tensor(8)
        )


@pytest.mark.parametrize("make", [SAWB, LeastSquares])
@pytest.mark.parametrize("bits", [2, 8])
@pytest.mark.parametrize("power_of_two", [False, True])
@pytest.mark.parametrize("shape", [(), (4, 1, 1, 1)])
def test_what_tracing_sees_of_ranges_of_weights(as_in_tracing, make, bits, power_of_two, shape):
    quantizer = make(bits, signed=True, shape=shape, power_of_two=power_of_two)
    for end in range(2):
        assert like_the_result(lambda w, end=end: quantizer.bounds(w)[end], torch.randn(4, 3, 3, 3))
