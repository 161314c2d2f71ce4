"""Where the tensors of a program lie in one block of memory: those that are needed at the same time lie apart.

Placing them is a packing problem. Greedy orders solve it well: the buffers one by one, each as low as it fits beside
those that are placed already and live at the same time (Pisarchyk and Lee, arXiv 2001.03288).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

ALIGNMENT = 4
"""Bytes; every buffer starts at a multiple of it."""


@dataclass(frozen=True)
class Buffer:
    """size: bytes; first, last: steps between which it is needed, both included."""

    name: str
    size: int
    first: int
    last: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError(f"size of {self.name} is {self.size}; expected bytes, 0 or more")
        if self.first > self.last:
            raise ValueError(f"{self.name} is needed from step {self.first} to {self.last}; expected first <= last")

    def meets(self, other: "Buffer") -> bool:
        """Whether both are needed at some step."""
        return self.first <= other.last and other.first <= self.last


@dataclass(frozen=True)
class Plan:
    """offsets: bytes, of each buffer in the order given; size: bytes of the whole."""

    buffers: tuple[Buffer, ...]
    offsets: tuple[int, ...]

    @property
    def size(self) -> int:
        return max((o + aligned(b.size) for b, o in zip(self.buffers, self.offsets, strict=True)), default=0)


ORDERS: tuple[Callable[[Buffer], tuple[int, ...]], ...] = (
    lambda b: (-b.size, b.first),
    lambda b: (-b.size * (b.last - b.first + 1), b.first),
    lambda b: (b.first, -b.size),
    lambda b: (b.first - b.last, -b.size),
)
"""Orders that are tried, by the key of a buffer: large ones first, those of large areas, early ones, lasting ones."""


def aligned(size: int) -> int:
    """The next multiple of `ALIGNMENT`."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def plan(buffers: Sequence[Buffer]) -> Plan:
    """The smallest of the plans that the greedy orders give; of equal ones the first."""
    plans = [_greedy(buffers, order) for order in ORDERS]
    return min(plans, key=lambda p: p.size)


def _greedy(buffers: Sequence[Buffer], order: Callable[[Buffer], tuple[int, ...]]) -> Plan:
    offsets = [0] * len(buffers)
    placed: list[int] = []
    for i in sorted(range(len(buffers)), key=lambda i: order(buffers[i])):
        taken = sorted(
            (offsets[j], offsets[j] + aligned(buffers[j].size)) for j in placed if buffers[j].meets(buffers[i])
        )
        offset = 0
        for start, end in taken:
            if start - offset >= aligned(buffers[i].size):
                break
            offset = max(offset, end)
        offsets[i] = offset
        placed.append(i)
    return Plan(tuple(buffers), tuple(offsets))


def peak(buffers: Sequence[Buffer]) -> tuple[int, tuple[Buffer, ...]]:
    """(bytes, buffers) of the step at which most is needed, of several the first: no plan is smaller. Largest first."""
    steps = sorted({b.first for b in buffers})
    live = [tuple(b for b in buffers if b.first <= step <= b.last) for step in steps]
    sizes = [sum(aligned(b.size) for b in at) for at in live]
    if not sizes:
        return 0, ()
    most = max(sizes)
    return most, tuple(sorted(live[sizes.index(most)], key=lambda b: -b.size))


def alive(buffers: Sequence[Buffer]) -> tuple[int, ...]:
    """Bytes that are needed at each step, from 0 on."""
    last = max((b.last for b in buffers), default=-1)
    return tuple(sum(aligned(b.size) for b in buffers if b.first <= step <= b.last) for step in range(last + 1))
