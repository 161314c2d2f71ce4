"""Convolutions, linear layers and batch norm: on codes, with all that is linear after them in one; or in float."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spequant.deploy.grids import Grid, act_grid, weight_grid
from spequant.deploy.integers import Integers, int8_form
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step
from spequant.layers import QuantizedLayer, effective_weight
from spequant.networks import QUANTIZABLE
from spequant.quantizers import Quantizer

CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def layer_attributes(module: nn.Module) -> dict[str, Any]:
    """Stride, padding, dilation and groups of a convolution; nothing of a linear layer. ValueError: neither, or
    computed in another way than torch's own layers."""
    layer = module.layer if isinstance(module, QuantizedLayer) else module
    plain = next((k for k in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d) if isinstance(layer, k)), None)
    standardised = hasattr(layer, "effective_weight") and not getattr(layer, "same_pad", False)
    if plain is None or not (type(layer).forward is plain.forward or standardised):
        raise ValueError(f"{type(layer).__name__} has no integer form; spequant.deploy.export_mixed takes it")
    if plain is nn.Linear:
        return {}
    conv: Any = layer
    if conv.padding_mode != "zeros":
        raise ValueError(f"padding_mode {conv.padding_mode!r} has no integer form; expected zeros")
    padding = conv.padding
    if isinstance(padding, str):
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        if padding == "same" and any(t % 2 for t in total):
            raise ValueError("padding 'same' differs by side here, which has no integer form")
        padding = tuple(t // 2 if padding == "same" else 0 for t in total)
    return {"stride": conv.stride, "padding": padding, "dilation": conv.dilation, "groups": conv.groups}


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(factor, shift), float64 per channel: batch norm on its running statistics is x * factor + shift."""
    n: Any = norm
    if n.running_var is None:
        raise ValueError(f"{norm!r} keeps no running statistics; it has no form outside its batch")
    deviation = torch.sqrt(n.running_var.double() + n.eps)
    factor = (n.weight.detach().double() if n.affine else torch.ones_like(deviation)) / deviation
    shift = (n.bias.detach().double() if n.affine else 0.0) - n.running_mean.double() * factor
    return factor.cpu(), shift.cpu()


def product(op: "Weighted | FloatLayer", x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """What `op` computes of `x` with this `weight`, (outputs, inputs / groups, *kernel) or (outputs, inputs)."""
    if not op.spatial:
        return F.linear(x, weight, bias)
    return CONV[op.spatial](x, weight, bias, op.stride, op.padding, op.dilation, op.groups)


@dataclass(eq=False)
class Weighted(Operation):
    """A convolution or linear layer on codes, with all that is linear after it (bias, batch norm):

    y[o] = scale[o] * input step * sum(weight[o] * codes) + offset[o]

    weight: int16, or int8 where it was made for int8 arithmetic, (outputs, inputs / groups, *kernel) or (outputs,
    inputs); scale, offset: float64 (outputs,); scale may be negative or zero. Without stride: a linear layer. bias: the
    parameter that `offset` grows with, one to one.
    """

    weight: Tensor
    scale: Tensor
    offset: Tensor
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: Tensor | None = None

    WORD = "layer"
    MODULES: ClassVar[dict[type, Read]] = dict.fromkeys((QuantizedLayer, *QUANTIZABLE), layer_attributes)

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
        form = self.integers
        dtype = torch.float32 if form.exact_in_fp32 else torch.float64  # whole numbers, exact in either
        shape = (1, -1, *[1] * self.spatial)
        sums = product(self, inputs[0].to(dtype), form.weight.to(dtype))
        sums = (sums + form.bias.to(dtype).view(shape)).float()
        scale = (self.step * form.scale).view(shape)
        return sums * (scale if self.grid is None else scale / self.grid.step)

    @classmethod
    def reads(cls, step: Step) -> list[tuple[Step, Quantizer]]:
        module = step.module
        if isinstance(module, QuantizedLayer) and module.weight_quantizer and module.act_quantizer:
            return [(step.inputs[0], module.act_quantizer)]
        return []

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering, norm: Step | None = None) -> Operation | None:
        """norm: the batch norm behind it, whose result this is."""
        for source, quantizer in cls.reads(step):  # none of a layer with one side float
            layer: Any = step.module.layer  # type: ignore[union-attr]
            if isinstance(layer, nn.Linear) and len(source.shape) != 2:
                raise ValueError(
                    f"{step.name}: a linear layer on inputs of {len(source.shape)} dimensions has no integer "
                    "form here; expected (batch, features): flatten before it"
                )
            inside = at.codes(source, act_grid(quantizer))
            codes, scale = weight_grid(step.module)  # type: ignore[arg-type]
            offset = torch.zeros(len(codes)) if layer.bias is None else layer.bias.detach().cpu()
            factor, shift = (1.0, 0.0) if norm is None else norm_affine(norm.module)  # type: ignore[arg-type]
            bias: Any = (layer if norm is None else norm.module).bias  # type: ignore[union-attr]
            shape, parts = (norm or step).shape, (codes, scale * factor, offset.double() * factor + shift)
            return at.add(cls(step.name, (inside,), grid, shape, *parts, bias=bias, **step.attributes))
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
        layer: Any = step.module
        quantizer = None
        if isinstance(layer, QuantizedLayer):
            if layer.act_quantizer is not None:
                raise ValueError(
                    f"{step.name}: activations are quantized and weights are float, which has no integer form; prepare "
                    "with weight= as well, or with act=None"
                )
            layer, quantizer = layer.layer, layer.weight_quantizer
        with torch.no_grad():
            weight = effective_weight(layer) if quantizer is None else quantizer(effective_weight(layer))
        bias = torch.zeros(len(weight)) if layer.bias is None else layer.bias
        inputs, numbers = (at.value(step.inputs[0]),), {"weight": weight.detach().cpu(), "bias": bias.detach().cpu()}
        return at.add(cls(step.name, inputs, None, step.shape, **numbers, **step.attributes))

    @classmethod
    def restored(cls, fields: Mapping[str, Any], tensors: Sequence[Tensor]) -> Self:
        weight, bias = tensors
        return cls(**fields, weight=weight, bias=bias)


@dataclass(eq=False)
class Affine(Operation):
    """Batch norm on its own, in float: x * factor + shift, fp32 numbers per channel. Behind a layer: part of that."""

    factor: Tensor
    shift: Tensor

    WORD = "affine"
    MODULES: ClassVar[dict[type, Read]] = {_BatchNorm: lambda module: {}}

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.factor.view(shape) + self.shift.view(shape)

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
        (source,) = step.inputs
        return Weighted.arising(source, grid, at, step) if source.kind is Weighted else None

    @classmethod
    def floating(cls, step: Step, at: Lowering) -> Operation:
        factor, shift = (t.float() for t in norm_affine(step.module))  # type: ignore[arg-type]
        return at.add(cls(step.name, (at.value(step.inputs[0]),), None, step.shape, factor, shift))

    @classmethod
    def restored(cls, fields: Mapping[str, Any], tensors: Sequence[Tensor]) -> Self:
        factor, shift = (t.flatten() for t in tensors)
        return cls(**fields, factor=factor, shift=shift)
