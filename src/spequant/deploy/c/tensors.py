"""Tensors in the memory of a C program: positions one after the other, channels of a position side by side, codes
packed at 1, 2, 4 or 8 bits; what is no code is int32."""

from dataclasses import dataclass, field
from math import prod

from spequant.deploy.grids import Grid

WORD = 32
"""Bits of a number that is no code."""


@dataclass(eq=False)
class Storage:
    """Bytes that one tensor, or several of equal content, lie in. in_scores: of the caller's scores, not the arena.
    offset: known once all are placed."""

    name: str
    size: int
    in_scores: bool = False
    offset: int = 0


@dataclass(eq=False)
class Tensor:
    """shape: channels, then positions. low: the code that is stored as 0. unit: of int32 numbers, what 1 stands for."""

    storage: Storage
    shape: tuple[int, ...]
    bits: int
    low: int = 0
    high: int = 0
    unit: float = 1.0

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def positions(self) -> int:
        return prod(self.shape[1:])

    @property
    def stride(self) -> int:
        """Bytes of a position."""
        return stride_of(self.channels, self.bits)

    def viewed(self, shape: tuple[int, ...]) -> "Tensor":
        """The same bytes in another shape of as many channels and positions."""
        return Tensor(self.storage, shape, self.bits, self.low, self.high, self.unit)


def stride_of(channels: int, bits: int) -> int:
    """Bytes of the numbers of a position, which begin at a whole byte."""
    return -(-channels * bits // 8)


def width_of(low: int, high: int) -> int:
    """Bits of codes low .. high in memory: 1, 2, 4 or 8."""
    return next(bits for bits in (1, 2, 4, 8) if high - low < 2**bits)


def tensor(name: str, shape: tuple[int, ...], grid: Grid | None, unit: float = 1.0) -> Tensor:
    """A new tensor of codes of `grid`; None: of int32 numbers."""
    bits = WORD if grid is None else width_of(grid.low, grid.high)
    size = stride_of(shape[0], bits) * prod(shape[1:])
    ends = (0, 0) if grid is None else (grid.low, grid.high)
    return Tensor(Storage(name, size), shape, bits, *ends, unit)


@dataclass
class Call:
    """One kernel on its tensors. fields: of its structure, as the kernel's C file has it. scratch: bytes that it needs
    alone. in_place: (input, result) that may lie in the same bytes. macs: multiply-accumulates."""

    kernel: str
    name: str
    reads: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    fields: dict[str, object] = field(default_factory=dict)
    scratch: int = 0
    in_place: tuple[tuple[Tensor, Tensor], ...] = ()
    scratch_offset: int = 0
    macs: int = 0
