"""Convolutions and linear layers: on codes, with all that is linear after them in one; or in float."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from spequant.deploy.grids import Grid, act_grid, weight_grid
from spequant.deploy.integers import Integers, int8_form
from spequant.deploy.operations.operation import Lowering, Operation, Step
from spequant.deploy.operations.windows import padded
from spequant.layers import QuantizedLayer, effective_weight
from spequant.networks import TRANSPOSED
from spequant.quantizers import Quantizer

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


@dataclass(frozen=True)
class Form:
    """Of a convolution; as it is, of a linear layer."""

    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1


def product(op: "Weighted | FloatLayer | Form", x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `op` computes of `x` with this `weight`, (outputs, inputs / groups, *kernel) or (outputs, inputs)."""
    spatial = weight.dim() - 2
    if not spatial:
        return F.linear(x, weight, bias)
    padding = op.padding
    if len(padding) != spatial:
        x, padding = padded(x, padding), 0
    return CONV[spatial](x, weight, bias, op.stride, padding, op.dilation, op.groups)


def layer_of(step: Step) -> Any:
    """The float layer whose weight `step` computes with."""
    return step.module.layer if isinstance(step.module, QuantizedLayer) else step.module


@dataclass(frozen=True)
class After:
    """What is linear behind a layer: y * factor + shift, float64 (channels,) or one number; the shape of that; the
    parameter that `shift` grows with, one to one, and the one that `factor` and all but that of `shift` are multiples
    of, if there are such."""

    factor: Tensor
    shift: Tensor
    shape: tuple[int, ...]
    bias: Tensor | None
    gain: Tensor | None = None


def rescaled(layer: Any, scale: Tensor, after: After | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """(scale, offset, bias) of `Weighted`: of a layer with this `scale` of its weight codes, and what is `after` it."""
    offset = torch.zeros_like(scale) if layer.bias is None else layer.bias.detach().cpu().double()
    if after is None:
        return scale, offset, layer.bias
    return scale * after.factor, offset * after.factor + after.shift, after.bias


@dataclass(eq=False)
class Weighted(Operation):
    """A convolution or linear layer on codes, with all that is linear after it (bias, batch norm):

    y[o] = scale[o] * input step * sum(weight[o] * codes) + offset[o]

    weight: int16, or int8 where it was made for int8 arithmetic, (outputs, inputs / groups, *kernel) or (outputs,
    inputs); scale, offset: float64 (outputs,); scale may be negative or zero. Without stride: a linear layer, of the
    last dimension. padding: of zeros, as `windows.sides` reads it. bias: the parameter that `offset` grows with, one to
    one. gain: the one that `scale` and all but that of `offset` are multiples of.
    """

    weight: Tensor
    scale: Tensor
    offset: Tensor
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: Tensor | None = None
    gain: Tensor | None = None

    WORD = "layer"

    @property
    def in_float(self) -> bool:
        return False

    @property
    def spatial(self) -> int:
        """Dimensions of the kernel; 0: a linear layer."""
        return self.weight.dim() - 2

    @property
    def source(self) -> Grid:
        """Of its input."""
        grid = self.inputs[0].grid
        assert grid is not None
        return grid

    @property
    def step(self) -> Tensor:
        """Of its input, fp32."""
        return torch.tensor(self.source.step, dtype=torch.float32)

    @cached_property
    def integers(self) -> Integers:
        """What int8 arithmetic needs of it. ValueError: its sums may pass an int32."""
        return int8_form(self.name, self.weight, self.scale, self.offset, self.source)

    @property
    def saturates(self) -> bool:
        """Whether a sum of two products may pass 16 bits, to which processors without VNNI or dot products clip it."""
        return self.integers.saturates(self.source)

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        form, grid = self.integers, self.source
        sums = form.sums(inputs[0], lambda x, weight: product(self, x, weight), max(grid.high, -grid.low))
        scale = (self.step * form.scale).view(-1, *[1] * self.spatial)
        return sums * (scale if self.grid is None else scale / self.grid.step)

    @classmethod
    def reads(cls, step: Step) -> list[tuple[Step, Quantizer]]:
        module = step.module
        if isinstance(module, QuantizedLayer) and module.weight_quantizer and module.act_quantizer:
            return [(step.inputs[0], module.act_quantizer)]
        return []

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering, after: "After | None" = None) -> Operation | None:
        """after: what is linear behind it, whose result this is."""
        for source, quantizer in cls.reads(step):  # none of a layer with one side float
            inside, (codes, scale) = at.codes(source, act_grid(quantizer)), weight_grid(step.module)  # type: ignore[arg-type]
            scale, offset, bias = rescaled(layer_of(step), scale, after)
            shape, gain = (step.shape, None) if after is None else (after.shape, after.gain)
            numbers = {"bias": bias, "gain": gain, **step.attributes}
            return at.add(cls(step.name, (inside,), grid, shape, codes, scale, offset, **numbers))
        return None

    @classmethod
    def floating(cls, step: Step, at: Lowering) -> Operation:
        return FloatLayer.floating(step, at)

    @classmethod
    def restored(cls, fields: Mapping[str, Any], tensors: Sequence[Tensor]) -> Self:
        """tensors: those of `integers`, (weight, scale, bias)."""
        weight, scale, bias = tensors
        op = cls(**fields, weight=weight, scale=scale.double(), offset=bias.double())
        op.offset = bias.double() * (op.step * scale).double()
        return op


@dataclass(eq=False)
class FloatLayer(Operation):
    """A layer whose weight or input is float: weights as they are used, float arithmetic. Fields as `Weighted`'s."""

    weight: Tensor
    bias: Tensor
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1

    WORD = "layer"

    @property
    def spatial(self) -> int:
        return self.weight.dim() - 2

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        return product(self, x, self.weight, self.bias)

    @classmethod
    def floating(cls, step: Step, at: Lowering) -> Operation:
        weight, bias = float_parameters(step)
        return at.add(cls(step.name, (at.value(step.inputs[0]),), None, step.shape, weight, bias, **step.attributes))

    @classmethod
    def restored(cls, fields: Mapping[str, Any], tensors: Sequence[Tensor]) -> Self:
        weight, bias = tensors
        return cls(**fields, weight=weight, bias=bias)


def float_parameters(step: Step) -> tuple[Tensor, Tensor]:
    """(weight, bias) of a layer whose weight or input is float, as they are used. ValueError: only the input is
    quantized."""
    quantizer = None
    if isinstance(step.module, QuantizedLayer):
        if step.module.act_quantizer is not None:
            raise ValueError(
                f"{step.name}: activations are quantized and weights are float, which has no integer form; prepare "
                "with weight= as well, or with act=None"
            )
        quantizer = step.module.weight_quantizer
    layer = layer_of(step)
    with torch.no_grad():
        weight = effective_weight(layer) if quantizer is None else quantizer(effective_weight(layer))
    outputs = weight.shape[1] * layer.groups if isinstance(layer, TRANSPOSED) else len(weight)
    bias = torch.zeros(outputs) if layer.bias is None else layer.bias
    return weight.detach().cpu(), bias.detach().cpu()
