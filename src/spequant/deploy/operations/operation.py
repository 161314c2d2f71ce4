"""What an operation of an exported graph is: how torch's forms of it are read, what it computes, how a file says it.

A file of this folder holds everything about its operations but how a format writes them, which stands in the format.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from dataclasses import fields as fields_of
from functools import cached_property
from typing import Any, ClassVar, Protocol, Self

from torch import Tensor, nn

from spequant.deploy.grids import Grid, as_float
from spequant.deploy.operations.windows import Sides
from spequant.layers import Wrapper
from spequant.quantizers import Quantizer

Read = Callable[..., dict[str, Any]]
"""From the arguments of a call, without its first, or from a module, to the operation's fields, or to what `settled`
makes them of. ValueError: a form that has no place here."""


@dataclass(eq=False)
class Operation(ABC):
    """One step of a program: its inputs, and the grid of its result; `grid` None: the result is float.

    name: of the layer it comes from. shape: of the result for one sample, batch first.
    """

    name: str
    inputs: tuple["Operation", ...]
    grid: Grid | None
    shape: tuple[int, ...]

    WORD: ClassVar[str] = ""
    """what reports and errors call it"""
    MODULES: ClassVar[Mapping[type[nn.Module], Read]] = {}
    FUNCTIONS: ClassVar[Mapping[Any, Read]] = {}
    METHODS: ClassVar[Mapping[str, Read]] = {}
    COMMUTES: ClassVar[bool] = False
    """whether rounding its inputs is rounding its result"""
    MOVES: ClassVar[bool] = False
    """whether it puts numbers elsewhere and computes none"""
    POINTWISE: ClassVar[bool] = False
    """whether each number of its result follows from those at the same place of its inputs"""
    OPERANDS: ClassVar[bool] = False
    """whether its readings take all arguments of a call, the first too"""

    @property
    def in_float(self) -> bool:
        """Whether it computes on float values, where engines are no faster than in fp32."""
        return self.grid is None and not self.MOVES

    def check_one_row(self, format: str) -> None:
        """For formats whose tensors are of one sample. ValueError: it takes a sample apart into several, as by
        `x.view(-1, 8)`, or reads such parts."""
        if any(one.shape[0] != 1 for one in (self, *self.inputs)):
            raise ValueError(
                f"{self.name}: {self.WORD} works on parts of a sample as on samples, which the format {format} has "
                "not; --to onnx takes it"
            )

    def values(self, inputs: Sequence[Tensor]) -> list[Tensor]:
        """`inputs`, codes (int32) or float, as the numbers it computes on: codes where its result is codes."""
        if self.grid is not None:
            return [x.float() for x in inputs]
        return [as_float(x, i.grid) for x, i in zip(inputs, self.inputs, strict=True)]

    @abstractmethod
    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        """Its result, in units of its grid's step, not yet rounded and clamped. inputs: codes (int32) or float."""

    @classmethod
    def settled(cls, step: "Step") -> "Step":
        """What `step` amounts to now that its shapes are known: itself, or steps of other kinds, the last of them.
        ValueError: nothing that has a place here."""
        return step

    @classmethod
    def margins(cls, step: "Step") -> Sides | None:
        """How many zeros `step` puts around the positions of its input, where it does nothing else; None: it does."""
        return None

    @classmethod
    def own_grid(cls, step: "Step") -> Grid | None:
        """The grid that its result lies on in the network itself: a quantizer has put it or its inputs there."""
        grids = {i.own_grid for i in step.inputs} if cls.COMMUTES else set()
        return grids.pop() if len(grids) == 1 else None

    @classmethod
    def reads(cls, step: "Step") -> list[tuple["Step", Quantizer]]:
        """What it reads as codes, and whose."""
        return []

    @classmethod
    def carried(cls, step: "Step", grid: Grid, at: "Lowering") -> "Operation | None":
        """`step` on `grid` by its inputs on that grid, where it commutes with rounding. What lies on another grid
        already is not looked behind: it is rounded once more."""
        if not cls.COMMUTES or not (step.own_grid is None or grid.lies_in(step.own_grid)):
            return None
        inputs = tuple(at.codes(i, grid) for i in step.inputs)
        return at.add(cls(step.name, inputs, grid, step.shape, **step.attributes))

    @classmethod
    def arising(cls, step: "Step", grid: Grid | None, at: "Lowering") -> "Operation | None":
        """`step` on `grid`, or in float, where it is a sum of products or of addends that are codes themselves."""
        return None

    @classmethod
    def floating(cls, step: "Step", at: "Lowering") -> "Operation":
        """`step` in float, from float."""
        return at.add(cls(step.name, tuple(at.value(i) for i in step.inputs), None, step.shape, **step.attributes))

    @property
    def by_channel(self) -> bool:
        """Whether a pointwise operation computes otherwise from channel to channel."""
        return False

    def on(self, inputs: tuple["Operation", ...], grid: Grid | None) -> Self:
        """The same operation of other inputs, on another grid."""
        return replace(self, inputs=inputs, grid=grid)

    def attributes(self) -> dict[str, Any]:
        """Its fields but for those of every operation and tensors, as JSON."""
        names = [f.name for f in fields_of(self)[len(fields_of(Operation)) :]]
        return {n: v for n in names if not isinstance(v := getattr(self, n), Tensor | None)}

    @classmethod
    def restored(cls, fields: Mapping[str, Any], tensors: Sequence[Tensor]) -> Self:
        """From the fields of every operation and its `attributes`, and the constants that it was written with."""
        return cls(**fields)


@dataclass(eq=False)
class Step:
    """One operation of a traced network, as it was read. module: the one whose parameters it reads. shape: of its
    result, with a batch of two or more."""

    name: str
    kind: type[Operation]
    inputs: tuple["Step", ...] = ()
    shape: tuple[int, ...] = ()
    attributes: dict[str, Any] = field(default_factory=dict)
    module: nn.Module | None = None

    @cached_property
    def own_grid(self) -> Grid | None:
        return self.kind.own_grid(self)

    @cached_property
    def root(self) -> "Step | None":
        """The step on a grid of whose numbers, each alone, those of this one are a function; None: there is none."""
        if self.own_grid is not None:
            return self
        if not self.kind.POINTWISE or isinstance(self.module, Wrapper):
            return None
        roots = {i.root for i in self.inputs}
        root = roots.pop() if len(roots) == 1 else None
        return root if root is not None and root.shape == self.shape else None


class Lowering(Protocol):
    """The making of a program (`lowering.py`), as operations see it."""

    def add(self, op: Operation) -> Operation:
        """`op`, whose inputs are there, as the next of the program."""
        ...

    def value(self, step: Step) -> Operation:
        """`step` in float; of a quantizer, its codes."""
        ...

    def codes(self, step: Step, grid: Grid) -> Operation:
        """`step` on `grid`."""
        ...
