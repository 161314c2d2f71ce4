"""What torch.compile's graphs hold. For a process of its own, as compiling leaves state behind."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch._dynamo
from torch import Tensor, nn

import spequant
from spequant.functional import fake_quantize, on_power_of_two, scale_gradient
from spequant.layers import QuantizedLayer
from spequant.quantizers import PACT, SAWB, LeastSquares
from spequant.quantizers.base import level_tensor


def traced(function: Callable[..., Any], *inputs: Any) -> list[str]:
    """The names of the functions that one graph of `function(*inputs)` calls. AssertionError: there are more graphs."""
    torch._dynamo.reset()
    graphs: list[Any] = []
    torch.compile(function, backend=lambda graph, _: graphs.append(graph) or graph, fullgraph=True)(*inputs)
    (graph,) = graphs
    return [str(node.target) for node in graph.graph.nodes if node.op.startswith("call")]


def nodes() -> dict[str, list[str]]:
    """Of what is one node: the calls in its graph."""
    x, high, levels = torch.randn(4, 3, requires_grad=True), torch.tensor(1.0), level_tensor(4)
    clip = {"SAWB": SAWB(8), "LeastSquares": LeastSquares(4), "powers": LeastSquares(4, power_of_two=True)}
    with torch.no_grad():
        of_weights = {name: traced(q.bounds, torch.randn(8, 9)) for name, q in clip.items()}
    return {
        "fake_quantize": traced(lambda x: fake_quantize(x, None, high, levels), x),
        "on_power_of_two": traced(lambda x: on_power_of_two(-x.abs(), x.abs(), levels, levels), x),
        "scale_gradient": traced(lambda x: scale_gradient(x, 0.5), x),
        **of_weights,
    }


def gradients() -> dict[str, bool]:
    """{settings: whether values and gradients of a traced call are, bit for bit, those of a plain one}."""
    same = {}
    torch.manual_seed(0)
    x, weights = torch.cat([torch.randn(40), torch.tensor([0.0, 1.0, -1.0, math.inf, -math.inf])]), torch.randn(45)
    for low in (None, -1.0):
        for options in ({}, {"saturate": False}, {"inner": True}, {"inner": True, "ewgs": 0.2}):
            plain, compiled = (_results(run, x, weights, low, options) for run in (_plain, _aot))
            same[f"low {low}, {options}"] = all(map(torch.equal, plain, compiled))
    return same


def _plain(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return function


def _aot(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    torch._dynamo.reset()
    return torch.compile(function, backend="aot_eager", fullgraph=True)


def _results(run: Any, x: Tensor, weights: Tensor, low: float | None, options: dict[str, Any]) -> list[Tensor]:
    """The value, and the gradients of `x` and of the ends, of which `high` is a scaled one."""
    x, high = x.clone().requires_grad_(), torch.tensor(1.0, requires_grad=True)
    bottom = None if low is None else torch.tensor(low, requires_grad=True)

    def quantized(x: Tensor, bottom: Tensor | None, high: Tensor, levels: Tensor) -> Tensor:
        return fake_quantize(x, bottom, scale_gradient(high, 0.3), levels, **options)

    y = run(quantized)(x, bottom, high, level_tensor(4))
    (y * weights).sum().backward()
    ends = [high] if bottom is None else [bottom, high]
    return [y.detach(), *(t.grad for t in (x, *ends) if t.grad is not None)]


def hooked_layers() -> dict[str, list[float]]:
    """{kind of layer: largest differences of a compiled layer from a plain one, without hooks and with one}."""
    differences: dict[str, list[float]] = {}
    for layer, shape in ((nn.Linear(4, 3), (2, 4)), (nn.Conv2d(4, 3, 3, padding="same"), (2, 4, 5, 5))):
        model: Any = spequant.prepare(nn.Sequential(layer), weight=SAWB(4), act=PACT(4), ends=(SAWB(4), PACT(4)))
        spequant.calibrate(model, [torch.rand(16, *shape[1:])], samples=16)
        assert isinstance(model[0], QuantizedLayer)
        for _ in range(2):
            x = torch.rand(shape)
            gap = (_aot(model)(x) - model(x)).abs().max()
            differences.setdefault(type(layer).__name__, []).append(float(gap))
            model[0].layer.register_forward_hook(lambda module, inputs, output: output + 1)
    return differences
