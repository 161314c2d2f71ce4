"""A C program while it is made: which kernels are called on which tensors, and where these lie in memory."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from spequant.deploy.arena import Buffer, Plan, plan
from spequant.deploy.c.bounds import largest_float
from spequant.deploy.c.fusion import FusedGroup, fusions
from spequant.deploy.c.rounding import Rounding
from spequant.deploy.c.tensors import WORD, Call, Storage, Tensor, tensor
from spequant.deploy.operations import Add, Operation, Quantize, Weighted
from spequant.deploy.program import Program

CWriters = Mapping[type[Operation], Callable[[Any, Any], Tensor]]
ON_A_GRID = "prepare with residual=8 and between=8, which put it on a grid"
STEPS_IN_INT32 = 2.0**29
"""Of int32: what the largest float value of a program becomes."""


@dataclass(frozen=True)
class Table:
    """A constant array. kind: of its numbers in C."""

    kind: str
    values: np.ndarray

    @property
    def size(self) -> int:
        return self.values.size * {"uint8_t": 1, "int16_t": 2, "int32_t": 4, "int64_t": 8}[self.kind]


class CEmitter:
    """writers: of each operation. pixels: for each channel the numbers that the 256 values of a pixel stand for, fp32
    (channels, 256); None: the input is codes."""

    def __init__(self, writers: CWriters, program: Program, pixels: np.ndarray | None = None):
        self.writers, self.program, self.pixels = writers, program, pixels
        self.tensors: dict[Operation, Tensor] = {}
        self.calls: list[Call] = []
        self.fused: dict[Operation, FusedGroup] = fusions(program)
        self.unequal: dict[str, int] = {}
        self.outputs: dict[str, Tensor] = {}
        for op in program.ops[1:]:
            if op not in self.deferred:
                self.value(op)

    @cached_property
    def deferred(self) -> set[Operation]:
        """Layers that are computed where the additions are that they end in."""
        return {op for group in self.fused.values() for op, added in group.results if added is not None}

    @cached_property
    def word(self) -> float:
        """What 1 stands for in all int32 tensors, so that they may stand in one."""
        return largest_float(self.program) / STEPS_IN_INT32

    def value(self, op: Operation) -> Tensor:
        """The tensor of `op`, which is computed now if it is not yet there."""
        if op not in self.tensors:
            if type(op) not in self.writers:
                raise ValueError(f"{op.name}: {op.WORD} is computed in float, which the format c has not; {ON_A_GRID}")
            op.check_one_row("c")
            result = self.writers[type(op)](self, op)
            self.tensors.setdefault(op, result)
        return self.tensors[op]

    def parted(self, layer: Operation) -> list[tuple[Weighted, Add | None]]:
        """The results of `layer` and those of its sums, without the additions, which are computed on their own."""
        group = self.fused[layer]
        for _, added in group.results:
            self.fused.pop(added, None)  # type: ignore[arg-type]
        group.results = [(op, None) for op in dict.fromkeys(op for op, _ in group.results)]
        return group.results

    def new(self, op: Operation, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor for the result of `op`."""
        return tensor(op.name, shape or op.shape[1:], op.grid, self.word if op.grid is None else 1.0)

    def call(
        self, kernel: str, op: Operation, reads: tuple[Tensor, ...], writes: tuple[Tensor, ...], /, **more: Any
    ) -> None:
        """`kernel` for `op`. more: scratch, in_place, macs; all else are fields."""
        options = {name: more.pop(name) for name in ("scratch", "in_place", "macs") if name in more}
        self.calls.append(Call(kernel, op.name, reads, writes, more, **options))

    def rounded(self, op: Operation, how: Rounding) -> Rounding:
        """`how`, whose sums with another code than the twin's are noted."""
        if how.unequal:
            self.unequal[op.name] = self.unequal.get(op.name, 0) + how.unequal
        return how

    @property
    def scores_size(self) -> int:
        """Bytes of all outputs so far."""
        ends = (s.offset + s.size for call in self.calls for t in call.writes if (s := t.storage).in_scores)
        return max(ends, default=0)

    def drop_unread(self) -> None:
        """Calls whose results nobody reads, from the last on."""
        read = {t.storage for t in self.outputs.values()}
        for call in reversed(self.calls):
            if any(t.storage in read for t in call.writes):
                read |= {t.storage for t in call.reads}
        self.calls = [call for call in self.calls if any(t.storage in read for t in call.writes)]

    def placed(self) -> Plan:
        """Where the arena's tensors lie; their storages know it then."""
        together, ends = self._lifetimes()
        roots = [s for s in ends if together[s] is s]
        buffers = []
        for root in roots:
            members = [ends[s] for s in ends if together[s] is root]
            first, last = min(m[0] for m in members), max(m[1] for m in members)
            buffers.append(Buffer(root.name, root.size, first, last))
        scratches = [(i, call) for i, call in enumerate(self.calls) if call.scratch]
        buffers += [Buffer(f"{call.name}: window", call.scratch, i, i) for i, call in scratches]
        layout = plan(buffers)
        offsets = dict(zip(roots, layout.offsets, strict=False))
        for storage in ends:
            storage.offset = offsets[together[storage]]
        for (_, call), offset in zip(scratches, layout.offsets[len(roots) :], strict=True):
            call.scratch_offset = offset
        return layout

    def _lifetimes(self) -> tuple[dict[Storage, Storage], dict[Storage, tuple[int, int]]]:
        """({storage: that whose bytes it takes}, {storage: its first and last call})."""
        ends: dict[Storage, tuple[int, int]] = {}
        for i, call in enumerate(self.calls):
            for t in (*call.reads, *call.writes):
                if not t.storage.in_scores:
                    ends[t.storage] = ends.get(t.storage, (i, i))[0], i
        together = {s: s for s in ends}
        for i, call in enumerate(self.calls):
            for source, result in call.in_place:
                a, b = source.storage, result.storage
                if a not in ends or b not in ends or sum(t.storage is a for t in call.reads) != 1:
                    continue
                alike = (a.size, source.bits, source.stride) == (b.size, result.bits, result.stride)
                if alike and ends[a][1] == i == ends[b][0]:
                    together[b] = together[a]
                    break
        return together, ends

    def taps(self) -> dict[Operation, tuple[int, Tensor]]:
        """Operations whose codes lie in a tensor of their own, with that, and the call after which they are there."""
        last = {t.storage: i for i, call in enumerate(self.calls) for t in call.writes}
        shown: dict[Operation, tuple[int, Tensor]] = {}
        for op, t in self.tensors.items():
            if op.grid is not None and t.storage in last and t.bits != WORD:
                shown[op] = last[t.storage], t
        return shown


def entries(program: Program) -> list[Quantize]:
    """The operations that make the input's codes."""
    return [op for op in program.ops if isinstance(op, Quantize) and op.inputs[0] is program.input]
