"""Functions of single numbers, and sums and products of two, in a .tflite graph: tables and int8 operators on codes,
operators that both engines have on float values."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from spequant.deploy.onnx_function import float_step
from spequant.deploy.operations import (
    Add,
    Affine,
    Clamp,
    Curve,
    Divide,
    Function,
    Mul,
    Operation,
    PRelu,
    Sigmoid,
    Subtract,
)
from spequant.deploy.requantization import CODE_SUM, PRODUCT, Pairs, pair_scale
from spequant.deploy.tflite_emitter import NONE, RELU, TfliteEmitter, TfliteWriters, is_near
from spequant.deploy.tflite_nodes import INT32


def _function(e: TfliteEmitter, op: Function) -> int:
    """In float, which LiteRT makes a table of, where no result lies near the middle of two codes; for microcontrollers,
    and elsewhere, as a table in the graph."""
    step = None if e.micro else float_step(op)
    if step is None or not all(map(_has_float, op.parts)):
        return _table(e, op)
    for part in op.parts:
        e.emit(part)
    inputs = [e.value(op.parts[-1]), e.number(op, [np.float32(1 / step)])]
    return e.rounded(op, e.graph.node("MUL", inputs, e.like(op), fusedActivationFunction=e.least(op)))


def _has_float(part: Operation) -> bool:
    return not isinstance(part, Curve) or part.function in CURVE_WRITERS or _is_square(part)


def _table(e: TfliteEmitter, op: Function) -> int:
    """Stored codes, which GATHER looks up; one table for each channel, one after the other, where they differ."""
    (source,) = op.inputs
    assert op.grid is not None and source.grid is not None
    table = torch.round(op.table).clamp(op.grid.low, op.grid.high) + e.zero[op]
    offsets = np.atleast_1d(np.int32(-source.grid.low - e.zero[source]))
    if table.dim() > 1:
        offsets = offsets + np.arange(table.shape[1], dtype=np.int32) * len(table)
    step, codes = np.float32(op.grid.step), e.stored(source)
    index = e.graph.tensor(op.name, e.graph.shape(codes), INT32)
    index = e.graph.node("CAST", [codes], index)
    if offsets.any():
        inputs = [index, e.graph.constant(op.name, offsets)]
        out = e.graph.tensor(op.name, e.graph.shape(codes), INT32)
        index = e.graph.node("ADD", inputs, out, fusedActivationFunction=e.activation(NONE))
    flat = table.t().flatten().numpy().astype(np.int8)
    inputs = [e.graph.constant(op.name, flat, step, zero=e.zero[op]), index]
    return e.graph.node("GATHER", inputs, e.codes(op, step), axis=0)


def _of_pairs(e: TfliteEmitter, op: Add | Mul, kind: str, pairs: Pairs) -> int:
    """Codes of two codes, at a scale at which the fewest pairs have another code than in the twin."""
    assert op.grid is not None
    how = e.clip(op)
    units, (a, b) = [e.unit(i) for i in op.inputs], (i.grid for i in op.inputs)
    assert a is not None and b is not None
    alike = pairs is CODE_SUM and is_near(*units)  # in any unit that both have
    inputs = [e.stored(i) if alike else e.near_step(i) for i in op.inputs]
    first, second = (e.graph.scale(tensor) for tensor in inputs)
    pair = pair_scale(pairs, (a, b, op.grid), (first, second), units[1] if alike else 1)
    e.unequal[op] = pair.unequal
    fused = how.activation if how.activation in (NONE, RELU) else NONE
    out = e.codes(op, pair.scale) if pair.inside else e.unclipped(op, how, pair.scale)
    e.graph.node(kind, inputs, out, fusedActivationFunction=e.activation(fused))
    if pair.inside:
        return out
    if how.activation not in (fused, None):
        return e.renamed(op, out, how.unit, how.activation)
    return e.clipped(op, out, how)


def _add(e: TfliteEmitter, op: Add) -> int:
    return _of_two("ADD")(e, op) if op.grid is None else _of_pairs(e, op, "ADD", CODE_SUM)


def _mul(e: TfliteEmitter, op: Mul) -> int:
    if op.grid is None:
        return _of_two("MUL")(e, op)
    return _of_pairs(e, op, "MUL", PRODUCT)


def _of_two(kind: str) -> Callable[[TfliteEmitter, Any], int]:
    """Of two float values."""

    def write(e: TfliteEmitter, op: Operation) -> int:
        inputs = [e.value(i) for i in op.inputs]
        return e.graph.node(kind, inputs, e.like(op), fusedActivationFunction=e.activation(NONE))

    return write


def _affine(e: TfliteEmitter, op: Affine) -> int:
    x = _Float(e, op)
    return x.of("ADD", x.of("MUL", x.source, op.factor.numpy()), op.shift.numpy())


def _clamp(e: TfliteEmitter, op: Clamp) -> int:
    (source,) = e.sources(op)
    if op.low == 0 and op.high in (6.0, float("inf")):
        return e.graph.node("RELU" if op.high > 6 else "RELU6", [source], e.like(op))
    ends = (end if np.isfinite(end) else None for end in (op.low, op.high))
    return e.between(op, source, *ends)


def _prelu(e: TfliteEmitter, op: PRelu) -> int:
    slopes = op.slopes.numpy().reshape(*[1] * (len(e.graph.shape(e.value(op.inputs[0]))) - 2), -1)
    return e.graph.node("PRELU", [e.value(op.inputs[0]), e.number(op, slopes)], e.like(op))


class _Float:
    """Operators on the float value of the input of `op`. source: that."""

    def __init__(self, e: TfliteEmitter, op: Operation) -> None:
        self.e, self.op, self.source = e, op, e.value(op.inputs[0])

    def one(self, kind: str, x: int, **options: Any) -> int:
        return self.e.graph.node(kind, [x], self.e.like(self.op), **options)

    def of(self, kind: str, x: int, other: Any) -> int:
        """other: a tensor of the graph (int), or numbers (float, array)."""
        other = other if isinstance(other, int) else self.e.number(self.op, np.atleast_1d(other))
        fused = {} if kind in ("MAXIMUM", "MINIMUM") else {"fusedActivationFunction": self.e.activation(NONE)}
        return self.e.graph.node(kind, [x, other], self.e.like(self.op), **fused)


def _elu(f: _Float, alpha: float = 1.0, times: float = 1.0, rate: float = 1.0) -> int:
    """times (max(x, 0) + alpha (exp(min(x, 0) rate) - 1))"""
    below = f.of("SUB", f.one("EXP", f.of("MUL", f.of("MINIMUM", f.source, 0.0), rate)), 1.0)
    whole = f.of("ADD", f.one("RELU", f.source), f.of("MUL", below, alpha))
    return whole if times == 1 else f.of("MUL", whole, times)


def _softplus(f: _Float, x: int) -> int:
    """max(x, 0) + log(1 + exp(-|x|))"""
    small = f.one("EXP", f.of("MUL", f.one("ABS", x), -1.0))
    return f.of("ADD", f.one("RELU", x), f.one("LOG", f.of("ADD", small, 1.0)))


def _gelu_tanh(f: _Float) -> int:
    cube = f.of("MUL", f.of("MUL", f.of("MUL", f.source, f.source), f.source), 0.044715)
    tanh = f.one("TANH", f.of("MUL", f.of("ADD", cube, f.source), (2 / np.pi) ** 0.5))
    return f.of("MUL", f.of("MUL", f.source, 0.5), f.of("ADD", tanh, 1.0))


def _hardsigmoid(f: _Float) -> int:
    moved = f.of("ADD", f.source, 3.0)
    return f.of("MUL", f.of("MINIMUM", f.one("RELU", moved), 6.0), 1 / 6)


def _beta(f: _Float, beta: float, threshold: float) -> int:
    """Above the threshold x, which fp32 does not tell from it."""
    return f.of("MUL", _softplus(f, f.of("MUL", f.source, beta)), 1 / beta)


SELU = 1.0507009873554805, 1.6732632423543772
"""Its scale and alpha."""
CURVE_WRITERS: dict[str, Callable[..., int]] = {
    "abs": lambda f: f.one("ABS", f.source),
    "celu": lambda f, alpha: _elu(f, alpha, rate=1 / alpha),
    "elu": _elu,
    "exp": lambda f: f.one("EXP", f.source),
    "gelu_tanh": _gelu_tanh,
    "hardsigmoid": _hardsigmoid,
    "hardswish": lambda f: f.of("MUL", _hardsigmoid(f), f.source),
    "leaky_relu": lambda f, slope: f.one("LEAKY_RELU", f.source, alpha=slope),
    "logsigmoid": lambda f: f.of("MUL", _softplus(f, f.of("MUL", f.source, -1.0)), -1.0),
    "mish": lambda f: f.of("MUL", f.one("TANH", _softplus(f, f.source)), f.source),
    "selu": lambda f: _elu(f, SELU[1], SELU[0]),
    "silu": lambda f: f.of("MUL", f.one("LOGISTIC", f.source), f.source),
    "softplus": _beta,
    "softsign": lambda f: f.of("DIV", f.source, f.of("ADD", f.one("ABS", f.source), 1.0)),
    "sqrt": lambda f: f.one("SQRT", f.source),
    "tanh": lambda f: f.one("TANH", f.source),
}
"""In float. Without those that TensorFlow Lite Micro has no operators for: gelu by erf, and powers but the square."""


def _is_square(op: Curve) -> bool:
    return (op.function, op.numbers) == ("pow", (2.0,))


def _curve(e: TfliteEmitter, op: Curve) -> int:
    f = _Float(e, op)
    if _is_square(op):
        return f.of("MUL", f.source, f.source)
    if op.function not in CURVE_WRITERS:
        numbers = f" {', '.join(map(str, op.numbers))}" if op.numbers else ""
        raise ValueError(
            f"{op.name}: the format tflite has no {op.function}{numbers} in float; prepare with between=8, which "
            "makes a table of it"
        )
    return CURVE_WRITERS[op.function](f, *op.numbers)


def _sigmoid(e: TfliteEmitter, op: Sigmoid) -> int:
    return e.graph.node("LOGISTIC", [e.value(op.inputs[0])], e.like(op))


POINTWISE: TfliteWriters = {
    Function: _function,
    Add: _add,
    Mul: _mul,
    Subtract: _of_two("SUB"),
    Divide: _of_two("DIV"),
    Affine: _affine,
    Clamp: _clamp,
    PRelu: _prelu,
    Sigmoid: _sigmoid,
    Curve: _curve,
}
