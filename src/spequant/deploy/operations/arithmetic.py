"""Sums, differences, products and quotients of two tensors: of codes, each at its own step, or of float values. With a
constant they are `Affine`."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from spequant.deploy.grids import Grid, act_grid
from spequant.deploy.operations.affine import Affine, affine, constants
from spequant.deploy.operations.function import Function
from spequant.deploy.operations.moving import unrepeated
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step
from spequant.layers import QuantizedAdd
from spequant.quantizers import Quantizer


def plain_addition(module: Any) -> dict[str, Any]:
    """ValueError: a marked addition that is another function than branch + shortcut."""
    a, b = torch.randn(2, 1, 2, 3, 3)
    if not torch.equal(module.add(a.clone(), b.clone()), a + b):  # it may write to them
        raise ValueError("its marked addition is not branch + shortcut; it has no integer form")
    return {}


def _operands(input: Any, other: Any, *, alpha: float = 1) -> dict[str, Any]:
    if alpha != 1:
        raise ValueError(f"alpha {alpha} has no integer form; expected a product before the sum")
    return {"operands": (input, other)}


def _of_two(step: Step) -> Step:
    """`step` of two tensors, these as they are before they are broadcast."""
    if len(step.inputs) != 2:
        raise ValueError(f"{len(step.inputs)} tensors have no form here; expected two")
    step.inputs = tuple(unrepeated(i, step.shape) for i in step.inputs)
    step.attributes = {}
    return step


@dataclass(eq=False)
class Add(Operation):
    """a + b."""

    WORD = "add"
    POINTWISE = OPERANDS = True
    MODULES: ClassVar[dict[type, Read]] = {QuantizedAdd: plain_addition}
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((operator.add, operator.iadd, torch.add), _operands)
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("add", "add_"), _operands)

    @property
    def of_codes(self) -> bool:
        return all(i.grid is not None for i in self.inputs)

    @property
    def in_float(self) -> bool:
        return not self.of_codes

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        a, b = inputs
        steps = [torch.tensor(i.grid.step if i.grid else 1.0, dtype=torch.float32) for i in self.inputs]
        if self.grid is not None:
            steps = [step / self.grid.step for step in steps]
        return a.float() * steps[0] + b.float() * steps[1]

    @classmethod
    def settled(cls, step: Step) -> Step:
        for constant in constants(step):
            return affine(step, step.inputs[0], shift=constant)
        return _of_two(step)

    @classmethod
    def reads(cls, step: Step) -> list[tuple[Step, Quantizer]]:
        module = step.module
        if not isinstance(module, QuantizedAdd):
            return []
        return list(zip(step.inputs, (module.branch_quantizer, module.shortcut_quantizer), strict=True))

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
        if step.module is not None:
            inputs = tuple(at.codes(i, act_grid(q)) for i, q in cls.reads(step))
        elif all(i.own_grid is not None for i in step.inputs):
            inputs = tuple(at.value(i) for i in step.inputs)
        else:
            return None
        return at.add(cls(step.name, inputs, grid, step.shape))


def _negated(name: str, op: Operation, at: Lowering) -> Operation:
    """-`op`, on the same grid with its ends changed."""
    assert op.grid is not None
    minus, zero = torch.tensor([-1.0]), torch.tensor([0.0])
    part = Affine(name, (op,), None, op.shape, minus, zero)
    return at.add(Function(name, (op,), op.grid.negated(), op.shape, (part,)))


@dataclass(eq=False)
class Subtract(Operation):
    """a - b."""

    WORD = "sub"
    POINTWISE = OPERANDS = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((operator.sub, operator.isub, torch.sub), _operands)
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("sub", "sub_"), _operands)

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        a, b = self.values(inputs)
        return a - b

    @classmethod
    def settled(cls, step: Step) -> Step:
        for constant in constants(step):
            if constant is step.attributes["operands"][0]:
                return affine(step, step.inputs[0], -1.0, constant)
            return affine(step, step.inputs[0], shift=-constant)
        return _of_two(step)

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
        """The sum of a and -b, both codes."""
        if any(i.own_grid is None for i in step.inputs):
            return None
        a, b = (at.value(i) for i in step.inputs)
        return at.add(Add(step.name, (a, _negated(step.name, b, at)), grid, step.shape))


@dataclass(eq=False)
class Mul(Operation):
    """a * b."""

    WORD = "mul"
    POINTWISE = OPERANDS = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((operator.mul, operator.imul, torch.mul), _operands)
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("mul", "mul_"), _operands)

    @property
    def of_codes(self) -> bool:
        return self.grid is not None and all(i.grid is not None for i in self.inputs)

    @property
    def in_float(self) -> bool:
        return not self.of_codes

    @property
    def unit(self) -> Tensor:
        """Of a product of two codes, fp32, in steps of its grid."""
        first, second = (torch.tensor(i.grid.step if i.grid else 1.0, dtype=torch.float32) for i in self.inputs)
        assert self.grid is not None
        return first * second / self.grid.step

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        a, b = (x.float() for x in inputs) if self.of_codes else self.values(inputs)
        return a * b * self.unit if self.of_codes else a * b

    @classmethod
    def settled(cls, step: Step) -> Step:
        for constant in constants(step):
            return affine(step, step.inputs[0], constant)
        return _of_two(step)

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
        if grid is None or any(i.own_grid is None for i in step.inputs):
            return None
        return at.add(cls(step.name, tuple(at.value(i) for i in step.inputs), grid, step.shape))


@dataclass(eq=False)
class Divide(Operation):
    """a / b, in float."""

    WORD = "div"
    POINTWISE = OPERANDS = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys((operator.truediv, operator.itruediv, torch.div), _operands)
    METHODS: ClassVar[dict[str, Read]] = dict.fromkeys(("div", "div_"), _operands)

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        a, b = self.values(inputs)
        return a / b

    @classmethod
    def settled(cls, step: Step) -> Step:
        for constant in constants(step):
            if constant is step.attributes["operands"][0]:
                raise ValueError("a constant divided by a tensor has no form here; expected a tensor divided by it")
            return affine(step, step.inputs[0], 1.0 / torch.as_tensor(constant).double())
        return _of_two(step)
