"""Any function of the numbers of one tensor on a grid, each alone: a table with an entry for each of its codes.

What a network composes of such steps (x * sigmoid(x), x * relu6(x + 3) / 6, batch norm, a clamp ...) is one operation:
from code to code, rounded once, whatever it is made of.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from spequant.deploy.grids import Grid, as_float
from spequant.deploy.operations.affine import Affine
from spequant.deploy.operations.operation import Lowering, Operation, Step


@dataclass(eq=False)
class Function(Operation):
    """From codes to codes. parts: the operations in float that it is made of, the last gives its result; they read its
    input, or one another."""

    parts: tuple[Operation, ...] = ()

    WORD = "function"

    @cached_property
    def table(self) -> Tensor:
        """Its results, in steps of its grid, before they are rounded: fp32 (codes,), those of its input in ascending
        order; or (codes, channels)."""
        (source,), channels = self.inputs, self.shape[1] if any(part.by_channel for part in self.parts) else 1
        assert source.grid is not None and self.grid is not None
        codes = torch.arange(source.grid.low, source.grid.high + 1, dtype=torch.int32)
        rank = len(self.shape)
        results = {source: codes.view(-1, *[1] * (rank - 1)).expand(-1, channels, *[1] * (rank - 2)).contiguous()}
        for part in self.parts:
            results[part] = part.compute([results[i] for i in part.inputs])
        table = as_float(results[self.parts[-1]], None).flatten(1) * self.grid.rate
        return table[:, 0].contiguous() if channels == 1 else table

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,), (source,) = inputs, self.inputs
        assert source.grid is not None
        at = (x - source.grid.low).long()
        if self.table.dim() == 1:
            return self.table[at]
        return self.table[at, torch.arange(self.shape[1]).view(-1, *[1] * (x.dim() - 2))]

    def on(self, inputs: tuple[Operation, ...], grid: Grid | None) -> Self:
        parts: dict[Operation, Operation] = dict(zip(self.inputs, inputs, strict=True))
        for part in self.parts:
            parts[part] = replace(part, inputs=tuple(parts[i] for i in part.inputs))
        return replace(self, inputs=inputs, grid=grid, parts=tuple(parts[part] for part in self.parts))

    def attributes(self) -> dict[str, Any]:
        return {}

    @classmethod
    def of(cls, step: Step, grid: Grid, at: Lowering) -> Operation | None:
        """`step` on `grid`, where it is a function of one tensor on a grid. Batch norm alone is a layer."""
        root = step.root
        if root is None or root is step or _is_layer(step, root):
            return None
        source = at.value(root)
        inside = _Inside({root: source}, [])
        inside.value(step)
        return at.add(cls(step.name, (source,), grid, step.shape, tuple(inside.parts)))


def _is_layer(step: Step, root: Step) -> bool:
    """Whether `step` is linear by channels, which a convolution with one number per channel computes."""
    by_channel = False
    while step.kind is Affine and step is not root:
        by_channel |= step.module is not None or any(t.numel() > 1 for t in step.attributes.values())
        step = step.inputs[0]
    return by_channel and step is root


@dataclass
class _Inside:
    """The making of the parts: a program of their own."""

    done: dict[Step, Operation]
    parts: list[Operation]

    def add(self, op: Operation) -> Operation:
        self.parts.append(op)
        return op

    def value(self, step: Step) -> Operation:
        if step not in self.done:
            self.done[step] = step.kind.floating(step, self)
        return self.done[step]

    def codes(self, step: Step, grid: Grid) -> Operation:
        raise AssertionError(f"{step.name}: parts of a function are float")
