"""What is linear number by number: batch norm, and constants that a tensor is multiplied by or added to."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spequant.deploy.grids import Grid
from spequant.deploy.operations.layer import After, Weighted, layer_of
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step
from spequant.deploy.operations.shaping import Flatten, Reshape
from spequant.deploy.operations.transposed import Transposed

LAYERS = {Weighted, Transposed}


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(factor, shift), float64 per channel: batch norm on its running statistics is x * factor + shift."""
    n: Any = norm
    if n.running_var is None:
        raise ValueError(f"{norm!r} keeps no running statistics; it has no form outside its batch")
    deviation = torch.sqrt(n.running_var.double() + n.eps)
    factor = (n.weight.detach().double() if n.affine else torch.ones_like(deviation)) / deviation
    shift = (n.bias.detach().double() if n.affine else 0.0) - n.running_mean.double() * factor
    return factor.cpu(), shift.cpu()


@dataclass(eq=False)
class Affine(Operation):
    """x * factor + shift, fp32 numbers per channel or one each, in float. Behind a layer: part of that; on codes: a
    convolution with kernels of one number."""

    factor: Tensor
    shift: Tensor

    WORD = "affine"
    POINTWISE = True
    MODULES: ClassVar[dict[type, Read]] = {_BatchNorm: lambda module: {}}

    @property
    def by_channel(self) -> bool:
        return self.factor.numel() > 1 or self.shift.numel() > 1

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        shape = (1, -1, *[1] * (x.dim() - 2))
        return x * self.factor.view(shape) + self.shift.view(shape)

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
        base, after = _behind(step)
        if base.kind in LAYERS:
            by_channel = after.factor.numel() > 1 or after.shift.numel() > 1
            last = not hasattr(layer_of(base), "kernel_size") and len(base.shape) > 2  # there the last are the outputs
            return None if by_channel and last else base.kind.arising(base, grid, at, after)  # type: ignore[call-arg]
        if grid is None or base.own_grid is None:
            return None
        return _on_codes(step.name, at.value(base), grid, after, at)

    @classmethod
    def floating(cls, step: Step, at: Lowering) -> Operation:
        factor, shift, _ = _numbers(step)
        return at.add(cls(step.name, (at.value(step.inputs[0]),), None, step.shape, factor.float(), shift.float()))

    @classmethod
    def restored(cls, fields: Mapping[str, Any], tensors: Sequence[Tensor]) -> Self:
        factor, shift = (t.flatten() for t in tensors)
        return cls(**fields, factor=factor, shift=shift)


def _numbers(step: Step) -> tuple[Tensor, Tensor, Tensor | None]:
    """(factor, shift, the parameter that is added last) of one step, float64."""
    if step.module is None:
        return step.attributes["factor"], step.attributes["shift"], None
    norm: Any = step.module
    return *norm_affine(norm), norm.bias


def _behind(step: Step) -> tuple[Step, After]:
    """(what comes before `step` and the steps of its kind before it, these as one)."""
    steps, base = [step], step.inputs[0]
    while base.kind is Affine:
        steps.append(base)
        base = base.inputs[0]
    factor, shift = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    bias = layer_of(base).bias if base.kind in LAYERS else None
    for one in reversed(steps):
        times, plus, last = _numbers(one)
        factor, shift = factor * times, shift * times + plus
        bias = last if last is not None or bool((times != 1).any()) else bias
    gain = None if step.module is None else getattr(step.module, "weight", None)
    return base, After(factor, shift, step.shape, bias, gain)


def _on_codes(name: str, source: Operation, grid: Grid, after: After, at: Lowering) -> Operation | None:
    """A convolution of `source`, codes, with one number for each channel."""
    shape, channels = after.shape, after.shape[1]
    spatial = max(1, len(shape) - 2)
    if spatial > 3:
        return None
    if len(shape) == 2:
        source = at.add(Reshape(name, (source,), source.grid, (*shape, 1)))
    ones = torch.ones(channels, 1, *[1] * spatial, dtype=torch.int16)
    factor, shift = (t.expand(channels).contiguous() for t in (after.factor, after.shift))
    window = (1,) * spatial, (0,) * spatial, (1,) * spatial
    full = (*shape[:2], *[1] * (3 - len(shape)), *shape[2:])
    op = at.add(Weighted(name, (source,), grid, full, ones, factor, shift, *window, channels, after.bias, after.gain))
    return op if len(shape) > 2 else at.add(Flatten(name, (op,), grid, shape))


def affine(step: Step, source: Step, factor: Any = 1.0, shift: Any = 0.0) -> Step:
    """`step` as `source` * factor + shift, each a number or a tensor with one per channel."""
    numbers = {"factor": _constant(factor, step.shape), "shift": _constant(shift, step.shape)}
    return Step(step.name, Affine, (source,), step.shape, numbers)


def _constant(value: Any, shape: tuple[int, ...]) -> Tensor:
    """float64, (channels,) or (1,). ValueError: one that differs along other dimensions than the channels."""
    value = torch.as_tensor(value).detach().cpu().double()
    full = (1,) * (len(shape) - value.dim()) + tuple(value.shape)
    if value.numel() > 1 and (len(full) != len(shape) or full != (1, shape[1], *[1] * (len(shape) - 2))):
        raise ValueError(
            f"a constant of the shape {tuple(value.shape)} has no form here; expected one number, or one per channel"
        )
    return value.flatten()


def constants(step: Step) -> list[Any]:
    """Of the two operands of `step`, those that are none of its inputs."""
    return [o for o in step.attributes.get("operands", ()) if not isinstance(o, fx.Node)]


@dataclass(eq=False)
class Negative(Operation):
    """-x. In no program: `Affine` is."""

    WORD = "neg"
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((operator.neg, torch.neg), lambda: {})
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("neg", "neg_"), lambda: {})

    @classmethod
    def settled(cls, step: Step) -> Step:
        return affine(step, step.inputs[0], -1.0)
