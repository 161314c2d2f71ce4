"""What a traced node computes, in a few words that `lower.py` knows: kinds, inputs, attributes.

Each way of writing an operation (module, function, method) has one entry in one of three tables. An operation in place
is read as the same one that is not: `writes.py` has seen to who reads its result.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spequant.layers import QuantizedAdd, QuantizedLayer
from spequant.networks import QUANTIZABLE
from spequant.quantizers import Quantizer

INF = math.inf


@dataclass
class Step:
    """name: of the module it is in, and of itself. module: whose parameters it reads."""

    name: str
    kind: str
    inputs: tuple[fx.Node, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None


def named(node: fx.Node) -> str:
    """The name of `node` behind that of the module whose forward it stands in: "layer1.0.add"."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    inside = next((path for path, _ in reversed(stack) if path), "")
    return f"{inside}.{node.name}" if inside and node.op != "placeholder" else node.name


def read_step(node: fx.Node, model: nn.Module) -> Step:
    """ValueError: an operation that no table has."""
    own = named(node)
    if node.op == "placeholder":
        return Step(own, "input")
    inputs = tuple(a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node))  # one may be there twice
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        name = str(node.target)
        kind, attributes = _module(module, name)
        return Step(name, kind, inputs, attributes, module)
    table: dict[Any, Callable[..., tuple[str, dict[str, Any]]]] = METHODS if node.op == "call_method" else FUNCTIONS
    if node.op == "get_attr" or node.target not in table:
        what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        raise ValueError(
            f"{own}: the operation {what} has no integer form; known are convolutions and linear layers, batch "
            "norm, ReLU and clamps, max pooling, the mean and maximum of all positions, additions, flattening, "
            "concatenation, slicing with a step and padding"
            f"{': write torch.flatten(x, 1)' if what in ('size', 'view', 'reshape') else ''}"
        )
    if "out" in node.kwargs:
        raise ValueError(f"{own}: out= has no integer form; expected the result that the operation returns")
    try:
        kind, attributes = table[node.target](*node.args[1:], **node.kwargs)
    except ValueError as error:
        raise ValueError(f"{own}: {error}") from None
    except TypeError as error:  # arguments that the reading does not know, or that are tensors
        raise ValueError(f"{own}: called so it has no integer form ({error})") from error
    if kind in ("add", "mul") and len(inputs) != 2:
        raise ValueError(f"{own}: an addition or product with a number has no form here; expected two tensors")
    if kind == "concat":
        inputs = tuple(node.args[0])  # type: ignore[arg-type]
    return Step(own, kind, inputs, attributes)


def _module(module: nn.Module, name: str) -> tuple[str, dict[str, Any]]:
    if isinstance(module, QuantizedAdd):
        a, b = torch.randn(2, 1, 2, 3, 3)
        if not torch.equal(module.add(a.clone(), b.clone()), a + b):  # it may write to them
            raise ValueError(f"{name}: its marked addition is not branch + shortcut; it has no integer form")
        return "quantized_add", {}
    if isinstance(module, Quantizer):
        return "requantize", {}
    layer = module.layer if isinstance(module, QuantizedLayer) else module
    if isinstance(layer, QUANTIZABLE):
        return "layer", layer_attributes(layer, name)
    for kinds, read in MODULES:
        if isinstance(module, kinds):
            try:
                return read(module)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    raise ValueError(f"{name}: {type(module).__name__} has no integer form")


def layer_attributes(layer: nn.Module, name: str) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution; nothing of a linear layer. ValueError: neither, or
    computed in another way than torch's own layers; `name` is for the message."""
    own: Any = layer
    plain = next((k for k in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, k)), None)
    standardised = hasattr(layer, "effective_weight") and not getattr(layer, "same_pad", False)
    if plain is None or not (type(layer).forward is plain.forward or standardised):
        raise ValueError(f"{name}: {type(layer).__name__} has no integer form; spequant.deploy.export_mixed takes it")
    if plain is nn.Linear:
        return {}
    if own.padding_mode != "zeros":
        raise ValueError(f"{name}: padding_mode {own.padding_mode!r} has no integer form; expected zeros")
    padding = own.padding
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(own.dilation, own.kernel_size, strict=True)]
        if padding == "same" and any(t % 2 for t in total):
            raise ValueError(f"{name}: padding 'same' differs by side here, which has no integer form")
        padding = tuple(t // 2 if padding == "same" else 0 for t in total)
    return {"stride": own.stride, "padding": padding, "dilation": own.dilation, "groups": own.groups}


def _pool(kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **rest: Any):
    def pair(value: Any) -> tuple[int, ...]:
        return (value, value) if isinstance(value, int) else tuple(value)

    if pair(dilation) != (1, 1) or rest.get("ceil_mode"):
        raise ValueError("max pooling with dilation or ceil_mode has no integer form")
    own = pair(kernel_size)
    return "max_pool", {"kernel": own, "stride": own if stride is None else pair(stride), "padding": pair(padding)}


def _clamp(low: float | None = None, high: float | None = None) -> tuple[str, dict[str, Any]]:
    return "clamp", {"low": -INF if low is None else float(low), "high": INF if high is None else float(high)}


def _dropout(p: float = 0.5, training: bool = True, inplace: bool = False) -> tuple[str, dict[str, Any]]:
    if training and p:
        raise ValueError("it is active in eval mode, too; write F.dropout(x, p, training=self.training)")
    return "same", {}


def _over_positions(kind: str) -> Callable[..., tuple[str, dict[str, Any]]]:
    def read(dim: Any = None, keepdim: bool = False, **_: Any):
        if dim is None or {d % 4 for d in ((dim,) if isinstance(dim, int) else dim)} != {2, 3}:
            raise ValueError(f"{kind} over {dim} has no form here; expected all positions, (2, 3)")
        return kind, {"keep": keepdim}

    return read


def _adaptive(output_size: Any) -> tuple[str, dict[str, Any]]:
    if output_size not in (1, (1, 1)):
        raise ValueError(f"adaptive pooling to {output_size} has no form here; expected 1")
    return "mean", {"keep": True}


def _flatten(start_dim: int = 0, end_dim: int = -1) -> tuple[str, dict[str, Any]]:
    if (start_dim, end_dim) != (1, -1):
        raise ValueError(f"flattening from {start_dim} to {end_dim} has no form here; expected all but the batch")
    return "flatten", {}


def _sliced(index: Any) -> tuple[str, dict[str, Any]]:
    """x[:, :, ::s, ::s]"""
    parts = list(index) if isinstance(index, tuple) else [index]
    plain = all(isinstance(p, slice) and p.start in (None, 0) and p.stop is None for p in parts)
    steps = [p.step or 1 for p in parts] if plain else []
    if not plain or len(steps) != 4 or steps[:2] != [1, 1]:
        raise ValueError("this indexing has no integer form; expected x[:, :, ::s, ::s]")
    return "stride", {"stride": tuple(steps[2:])}


def _pad(pad: Any, mode: str = "constant", value: Any = None) -> tuple[str, dict[str, Any]]:
    sides = tuple(pad)
    if mode != "constant" or value or len(sides) != 6 or any(sides[:4]):
        raise ValueError(f"padding {sides} has no integer form here; expected zero channels alone")
    return "pad", {"channels": sides[4:]}


def _concat(dim: int = 0) -> tuple[str, dict[str, Any]]:
    if dim != 1:
        raise ValueError(f"concatenation over dimension {dim} has no integer form here; expected 1, channels")
    return "concat", {}


MODULES: list[tuple[Any, Callable[[Any], tuple[str, dict[str, Any]]]]] = [
    (_BatchNorm, lambda m: ("batch_norm", {})),
    (nn.ReLU, lambda m: _clamp(0.0)),
    (nn.Hardtanh, lambda m: _clamp(m.min_val, m.max_val)),  # ReLU6, too
    (nn.MaxPool2d, lambda m: _pool(m.kernel_size, m.stride, m.padding, m.dilation, ceil_mode=m.ceil_mode)),
    (nn.AdaptiveAvgPool2d, lambda m: _adaptive(m.output_size)),
    (nn.Flatten, lambda m: _flatten(m.start_dim, m.end_dim)),
    (nn.Identity | nn.Dropout | nn.Dropout2d, lambda m: ("same", {})),
    (nn.Sigmoid, lambda m: ("sigmoid", {})),
]
FUNCTIONS: dict[Any, Callable[..., tuple[str, dict[str, Any]]]] = {
    **dict.fromkeys((F.relu, F.relu_, torch.relu, torch.relu_), lambda *_, **__: _clamp(0.0)),  # _: `inplace`
    F.relu6: lambda *_, **__: _clamp(0.0, 6.0),
    **dict.fromkeys((F.hardtanh, F.hardtanh_), lambda min_val=-1.0, max_val=1.0, *_, **__: _clamp(min_val, max_val)),
    **dict.fromkeys((torch.clamp, torch.clamp_), lambda min=None, max=None: _clamp(min, max)),
    F.max_pool2d: _pool,
    F.adaptive_avg_pool2d: _adaptive,
    **dict.fromkeys((operator.add, operator.iadd, torch.add), lambda other: ("add", {})),
    **dict.fromkeys((operator.mul, operator.imul, torch.mul), lambda other: ("mul", {})),
    torch.flatten: _flatten,
    torch.cat: _concat,
    operator.getitem: _sliced,
    F.pad: _pad,
    F.dropout: _dropout,
    torch.mean: _over_positions("mean"),
    torch.amax: _over_positions("amax"),
    **dict.fromkeys((torch.sigmoid, torch.sigmoid_), lambda: ("sigmoid", {})),
}
METHODS: dict[Any, Callable[..., tuple[str, dict[str, Any]]]] = {
    **dict.fromkeys(("relu", "relu_"), lambda: _clamp(0.0)),
    **dict.fromkeys(("clamp", "clamp_"), lambda min=None, max=None: _clamp(min, max)),
    "mean": _over_positions("mean"),
    "amax": _over_positions("amax"),
    "flatten": _flatten,
    **dict.fromkeys(("add", "add_"), lambda other: ("add", {})),
    **dict.fromkeys(("mul", "mul_"), lambda other: ("mul", {})),
    **dict.fromkeys(("sigmoid", "sigmoid_"), lambda: ("sigmoid", {})),
    "contiguous": lambda **_: ("same", {}),
}
