"""Windows that move over positions: what is added before and after them, along each dimension."""

from collections.abc import Sequence

from torch import Tensor
from torch.nn.functional import pad

Sides = tuple[tuple[int, ...], tuple[int, ...]]
"""(before, after) the positions, along each dimension."""


def sides(padding: Sequence[int], spatial: int) -> Sides:
    """Of `padding`, as operations keep it: one number per dimension, or those before and then those after."""
    padding = tuple(padding)
    return (padding, padding) if len(padding) == spatial else (padding[:spatial], padding[spatial:])


def joined(before: Sequence[int], after: Sequence[int]) -> tuple[int, ...]:
    """As operations keep it; see `sides`."""
    before, after = tuple(before), tuple(after)
    return before if before == after else (*before, *after)


def grown(padding: Sequence[int], margins: Sides) -> tuple[int, ...]:
    """`padding` with `margins` more."""
    both = zip(sides(padding, len(margins[0])), margins, strict=True)
    return joined(*(tuple(a + b for a, b in zip(pads, more, strict=True)) for pads, more in both))


def padded(x: Tensor, padding: Sequence[int], value: float = 0.0) -> Tensor:
    """`x` (batch, channels, ...) with `padding` of `value` around its positions."""
    before, after = sides(padding, x.dim() - 2)
    return pad(x, [n for pair in zip(reversed(before), reversed(after), strict=True) for n in pair], value=value)


def last_window(size: int, kernel: int, stride: int, before: int, count: int) -> int:
    """What has to stand after `size` positions, so that there are exactly `count` windows; may be below zero."""
    return (count - 1) * stride + kernel - size - before
