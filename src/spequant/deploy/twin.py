"""The integer twin: a program run in torch, codes as whole numbers, every sum exact; what exports are compared with."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spequant.deploy.integers import Integers, input_step, integers
from spequant.deploy.program import Add, Float, Input, MaxPool, Move, Op, Program, Quantize, Weighted, as_float

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


class Twin:
    """`program` on integer codes; call it with a float input (batch first) for the float output.

    Rounding is fp32's in the order in which onnxruntime computes: M = (input step * scale) / output step, one product,
    to the nearest, ties to the even code. So a code that differs elsewhere is a rounding tie or a bug.
    """

    def __init__(self, program: Program):
        self.program = program
        self.integers: dict[Op, Integers] = {op: integers(op) for op in program.ops if isinstance(op, Weighted)}

    def __call__(self, x: Tensor) -> Tensor:
        output = self.program.output
        return as_float(self.everything(x)[output], output.grid)

    @torch.no_grad()
    def everything(self, x: Tensor) -> dict[Op, Tensor]:
        """What every op gives: codes (int32) or float values."""
        found: dict[Op, Tensor] = {}
        for op in self.program.ops:
            found[op] = x.float() if isinstance(op, Input) else self.step(op, [found[i] for i in op.inputs])
        return found

    @torch.no_grad()
    def step(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        """One op on its inputs: codes (int32) or float values."""
        value = self.unrounded(op, inputs)
        return value if op.grid is None else torch.round(value).clamp(op.grid.low, op.grid.high).to(torch.int32)

    @torch.no_grad()
    def unrounded(self, op: Op, inputs: Sequence[Tensor]) -> Tensor:
        """The same in units of the result's step, not yet rounded and clamped."""
        if isinstance(op, Quantize):
            assert op.grid is not None
            return as_float(inputs[0], op.inputs[0].grid) * op.grid.rate
        if isinstance(op, Weighted):
            return self._weighted(op, inputs[0])
        if isinstance(op, Add):
            return _sum(op, *inputs)
        if isinstance(op, MaxPool):
            pool = POOL[len(op.kernel)]
            return pool(inputs[0].float(), op.kernel, op.stride, op.padding)
        if isinstance(op, Move):
            return _moved(op, inputs)
        assert isinstance(op, Float)
        values = [as_float(x, i.grid) for x, i in zip(inputs, op.inputs, strict=True)]
        return FLOAT[op.kind](values, op.tensors, **op.attributes)

    def _weighted(self, op: Weighted, codes: Tensor) -> Tensor:
        made = self.integers[op]
        dtype = torch.float32 if made.exact_in_fp32 else torch.float64  # whole numbers, exact in either
        x, weight, bias = codes.to(dtype), made.weight.to(dtype), made.bias.to(dtype)
        if op.spatial:
            sums = CONV[op.spatial](x, weight, None, op.stride, op.padding, op.dilation, op.groups)
            shape = (1, -1, *[1] * op.spatial)
        else:
            sums, shape = F.linear(x, weight), (1, -1)
        sums = (sums + bias.view(shape)).float()
        scale = (input_step(op) * made.scale).view(shape)
        return sums * (scale if op.grid is None else scale / op.grid.step)


def _sum(op: Add, a: Tensor, b: Tensor) -> Tensor:
    steps = [torch.tensor(i.grid.step if i.grid else 1.0, dtype=torch.float32) for i in op.inputs]
    if op.grid is not None:
        steps = [step / op.grid.step for step in steps]
    return a.float() * steps[0] + b.float() * steps[1]


def _moved(op: Move, inputs: Sequence[Tensor]) -> Tensor:
    if op.kind == "flatten":
        return inputs[0].flatten(1)
    if op.kind == "concat":
        return torch.cat(list(inputs), 1)
    return inputs[0].amax(tuple(range(2, inputs[0].dim())), keepdim=op.keep)


def _layer(values: list[Tensor], tensors: tuple[Tensor, ...], **attributes: Any) -> Tensor:
    weight, bias = tensors
    if weight.dim() == 2:
        return F.linear(values[0], weight, bias)
    return CONV[weight.dim() - 2](values[0], weight, bias, **attributes)


def _affine(values: list[Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
    shape = (1, -1, *[1] * (values[0].dim() - 2))
    return values[0] * tensors[0].view(shape) + tensors[1].view(shape)


FLOAT: dict[str, Callable[..., Tensor]] = {
    "layer": _layer,
    "affine": _affine,
    "add": lambda v, t: v[0] + v[1],
    "clamp": lambda v, t, low, high: v[0].clamp(low, high),
    "mean": lambda v, t, keep: v[0].mean(tuple(range(2, v[0].dim())), keepdim=keep),
    "amax": lambda v, t, keep: v[0].amax(tuple(range(2, v[0].dim())), keepdim=keep),
    "max_pool": lambda v, t, kernel, stride, padding: POOL[len(kernel)](v[0], kernel, stride, padding),
    "flatten": lambda v, t: v[0].flatten(1),
    "concat": lambda v, t: torch.cat(v, 1),
    "sigmoid": lambda v, t: torch.sigmoid(v[0]),
    "mul": lambda v, t: v[0] * v[1],
}
"""kind -> (values, constant tensors, **attributes) -> value"""
