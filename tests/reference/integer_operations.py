"""Literal integer programs: every operation on whole numbers, place by place, rounded once in fp64."""

import math
import operator
from itertools import product

import numpy as np
import torch

from spequant.deploy.operations import Add, AvgPool, Function, Mean, Mul, Quantize, Weighted

CURVES = {
    "abs": abs,
    "celu": lambda x, a: x if x > 0 else a * math.expm1(x / a),
    "elu": lambda x, a: x if x > 0 else a * math.expm1(x),
    "exp": math.exp,
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "hardsigmoid": lambda x: min(max(x + 3, 0), 6) / 6,
    "hardswish": lambda x: x * min(max(x + 3, 0), 6) / 6,
    "leaky_relu": lambda x, slope: x if x > 0 else slope * x,
    "logsigmoid": lambda x: -math.log1p(math.exp(-x)),
    "mish": lambda x: x * math.tanh(math.log1p(math.exp(x))),
    "pow": lambda x, n: x**n,
    "selu": lambda x: 1.0507009873554805 * (x if x > 0 else 1.6732632423543772 * math.expm1(x)),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "softplus": lambda x, beta, _: math.log1p(math.exp(beta * x)) / beta,
    "softsign": lambda x: x / (1 + abs(x)),
    "sqrt": math.sqrt,
    "tanh": math.tanh,
}


def literal(op, inputs):
    """What `op` gives in steps of its grid, fp64, not yet rounded. inputs: codes (int64) or float values."""
    name = type(op).__name__
    if isinstance(op, Function):
        return _function(op, inputs[0])
    if isinstance(op, Quantize):
        step = 1.0 if op.inputs[0].grid is None else op.inputs[0].grid.step
        return inputs[0].double() * step * op.grid.rate
    steps = [i.grid.step / op.grid.step for i in op.inputs]
    if isinstance(op, Weighted):
        return _weighted(op, inputs[0])
    if isinstance(op, Add):
        a, b = (x.double() * step for x, step in zip(inputs, steps, strict=True))
        return a + b
    if isinstance(op, Mul):
        return (inputs[0] * inputs[1]).double() * (op.inputs[0].grid.step * steps[1])
    if isinstance(op, Mean):
        dims = op.dims or tuple(range(2, inputs[0].dim()))
        count = math.prod(inputs[0].shape[d] for d in dims)
        return inputs[0].sum(dims, keepdim=op.keep).double() * steps[0] / count
    if isinstance(op, AvgPool):
        sums, counts = _windows(op, inputs[0])
        return sums.double() * steps[0] / counts
    return MOVED[name](op, [x.numpy() for x in inputs])


def _weighted(op, x):
    """Sums of products by loops over the kernel and the groups."""
    form = op.integers
    weight, bias = form.weight.long(), form.bias.long()
    if not op.spatial:
        sums = (x.unsqueeze(-2) * weight).sum(-1) + bias
    else:
        before, after = op.padding[: op.spatial], op.padding[-op.spatial :]
        x = torch.nn.functional.pad(x, [n for b, a in list(zip(before, after, strict=True))[::-1] for n in (b, a)])
        sums = bias.view(-1, *[1] * op.spatial).expand(len(x), *op.shape[1:]).clone()
        ins, outs = weight.shape[1], len(weight) // op.groups
        for o in range(len(weight)):
            for i in range(ins):
                channel = x[:, o // outs * ins + i]
                for tap in product(*map(range, weight.shape[2:])):
                    window = [
                        slice(t * d, t * d + (n - 1) * s + 1, s)
                        for t, d, s, n in zip(tap, op.dilation, op.stride, op.shape[2:], strict=True)
                    ]
                    sums[:, o] += weight[(o, i, *tap)] * channel[(slice(None), *window)]
    factor = (op.step * form.scale / op.grid.step).double()
    return sums.double() * factor.view(-1, *[1] * op.spatial)


def _function(op, x):
    """Each number by Python's own functions, in fp64."""
    source, out = op.inputs[0], torch.empty(x.shape, dtype=torch.float64)
    done = {}
    for place in np.ndindex(*x.shape):
        key = int(x[place]), place[1]
        if key not in done:
            values = {source: key[0] * source.grid.step}
            for part in op.parts:
                values[part] = _value(part, [values[i] for i in part.inputs], key[1])
            done[key] = values[op.parts[-1]] * op.grid.rate
        out[place] = done[key]
    return out


def _value(part, args, channel):
    name = type(part).__name__
    if name == "Affine":
        factor, shift = (float(t[channel % len(t)]) for t in (part.factor, part.shift))
        return args[0] * factor + shift
    if name == "PRelu":
        return args[0] if args[0] > 0 else args[0] * float(part.slopes[channel])
    if name == "Clamp":
        return min(max(args[0], part.low), part.high)
    if name == "Curve":
        return CURVES[part.function](args[0], *part.numbers)
    if name == "Sigmoid":
        return 1 / (1 + math.exp(-args[0]))
    signs = {"Add": operator.add, "Subtract": operator.sub, "Mul": operator.mul, "Divide": operator.truediv}
    return signs[name](*args)


def _places(op, x):
    """(place in the result, places of the input in its window) of a pooling operation."""
    spatial = len(op.kernel)
    before = op.padding[:spatial]
    for place in np.ndindex(*op.shape[2:]):
        first = [p * s - b for p, s, b in zip(place, op.stride, before, strict=True)]
        window = product(*(range(f, f + k) for f, k in zip(first, op.kernel, strict=True)))
        yield place, [w for w in window if all(0 <= i < n for i, n in zip(w, x.shape[2:], strict=True))]


def _windows(op, x):
    sums = torch.zeros(len(x), *op.shape[1:], dtype=torch.int64)
    counts = torch.zeros(op.shape[2:], dtype=torch.float64)
    for place, window in _places(op, x):
        counts[place] = math.prod(op.kernel) if op.counts_padding else len(window)
        for w in window:
            sums[(slice(None), slice(None), *place)] += x[(slice(None), slice(None), *w)]
    return sums, counts


def _moved(source):
    """From {place in the result: place in the input}, but the batch, to the operation."""

    def move(op, inputs):
        (x,) = inputs
        out = np.empty((len(x), *op.shape[1:]), x.dtype)
        for place in np.ndindex(*op.shape[1:]):
            at = source(op, place)
            out[(slice(None), *place)] = 0 if at is None else x[(slice(None), *at)]
        return torch.from_numpy(out).double()

    return move


def _in_order(op, place):
    return np.unravel_index(np.ravel_multi_index(place, op.shape[1:]), op.inputs[0].shape[1:])


def _turned(op, place):
    back = [0] * len(place)
    for to, source in enumerate(op.order[1:]):
        back[source - 1] = place[to]
    return back


def _shuffled(op, place):
    phase, inner = 0, []
    for p, f in zip(place[1:], op.factors, strict=True):
        phase, inner = phase * f + p % f, [*inner, p // f]
    return [place[0] * math.prod(op.factors) + phase, *inner]


def _cut(op, place):
    return [a + p * s for a, p, s in zip(op.start, place, op.step, strict=True)]


def _padded(op, inputs):
    (x,) = inputs
    fill = op.filling

    def source(op, place):
        at = [p - b for p, b in zip(place, op.before, strict=True)]
        sizes = op.inputs[0].shape[1:]
        if op.mode == "replicate":
            return [min(max(a, 0), n - 1) for a, n in zip(at, sizes, strict=True)]
        if op.mode == "reflect":
            return [min(abs(a), 2 * (n - 1) - abs(a)) for a, n in zip(at, sizes, strict=True)]
        return at if all(0 <= a < n for a, n in zip(at, sizes, strict=True)) else None

    moved = _moved(source)(op, [x - int(fill)])
    return moved + int(fill)


def _largest(op, inputs):
    (x,) = inputs
    out = np.empty((len(x), *op.shape[1:]), x.dtype)
    for place, window in _places(op, x):
        out[(slice(None), slice(None), *place)] = np.max([x[(slice(None), slice(None), *w)] for w in window], 0)
    return torch.from_numpy(out).double()


def _over_all(op, inputs):
    dims = op.dims or tuple(range(2, inputs[0].ndim))
    return torch.from_numpy(inputs[0].max(dims, keepdims=op.keep)).double()


MOVED = {
    "Flatten": _moved(_in_order),
    "Reshape": lambda op, inputs: torch.from_numpy(inputs[0].reshape(-1, *op.shape[1:])).double(),  # several rows, too
    "Transpose": _moved(_turned),
    "PixelShuffle": _moved(_shuffled),
    "Slice": _moved(_cut),
    "Repeat": _moved(lambda op, place: [p // t for p, t in zip(place, op.times, strict=True)]),
    "Concat": lambda op, inputs: torch.from_numpy(np.concatenate(inputs, op.dim)).double(),
    "Pad": _padded,
    "MaxPool": _largest,
    "Amax": _over_all,
}
