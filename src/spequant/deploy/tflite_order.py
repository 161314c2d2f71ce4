"""In which order the dimensions of tensors lie in a .tflite graph.

An order names torch's dimensions in the order of the graph's, the batch first: (0, 2, 3, 1) is an image with channels
last, as convolutions take it. Other tensors stay as they lie, under other names of their dimensions, and are transposed
where something reads them that needs another order: so channel shuffle, two reshapes and a transposition in torch, is
one transposition here, and `permute(0, 2, 3, 1)` of an image is none.
"""

from collections.abc import Sequence
from itertools import pairwise

Order = tuple[int, ...]


def last(rank: int) -> Order:
    """Channels last."""
    return (0, *range(2, rank), *range(1, min(rank, 2)))


def laid(shape: Sequence[int], order: Order) -> list[int]:
    """The shape in the graph of a tensor that torch has as `shape`: of 3 dimensions, (batch, 1, ., .)."""
    return [shape[0], *([1] if len(shape) == 3 else []), *(shape[d] for d in order[1:])]


def place(order: Order, dim: int) -> int:
    """The dimension of the graph that is `dim` of torch."""
    return order.index(dim) + (len(order) == 3 and dim > 0)


def moving(shape: Sequence[int], order: Order) -> list[int]:
    """Of `order`, the dimensions of more than one number: where the others are makes no difference."""
    return [d for d in order[1:] if shape[d] > 1]


def runs_of_order(shape: Sequence[int], source_order: Order, order: Order) -> list[list[int]]:
    """The dimensions of `order`, those together that follow one another in `source_order`, too. The first is with the
    batch."""
    old, together = moving(shape, source_order), [[0]]
    places = {d: i for i, d in enumerate([0, *old])}
    for before, dim in pairwise([0, *moving(shape, order)]):
        if places[dim] == places[before] + 1:
            together[-1].append(dim)
        else:
            together.append([dim])
    return together


def regrouped(old: Sequence[int], order: Order, new: Sequence[int]) -> tuple[Order, Order]:
    """For numbers of shape `old`, which lie in `order`, to be of shape `new`: (order in which they have to lie, order
    in which they lie then), of those that need no transposition, or none until they are read, where there are any."""
    groups = _groups(old, new)
    there = moving(old, order)
    groups.sort(key=lambda group: there.index(group[0][0]))
    if [d for group, _ in groups for d in group] == there:
        return order, _completed([d for _, group in groups for d in group], new)
    wanted = moving(new, last(len(new)))
    groups.sort(key=lambda group: wanted.index(group[1][0]))
    if [d for _, group in groups for d in group] == wanted:
        return _completed([d for group, _ in groups for d in group], old), last(len(new))
    return tuple(range(len(old))), tuple(range(len(new)))


def _groups(old: Sequence[int], new: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """The fewest dimensions of `old` and of `new` that hold the same numbers, next to each other."""
    left, right = ([d for d in range(1, len(shape)) if shape[d] > 1] for shape in (old, new))
    pairs = []
    while left:
        a, b = [left.pop(0)], [right.pop(0)]
        first, second = old[a[0]], new[b[0]]
        while first != second:
            if first < second:
                a.append(left.pop(0))
                first *= old[a[-1]]
            else:
                b.append(right.pop(0))
                second *= new[b[-1]]
        pairs.append((a, b))
    return pairs


def _completed(dims: Sequence[int], shape: Sequence[int]) -> Order:
    """An order whose dimensions of more than one number are `dims`: channels last, or torch's, if it can be."""
    rank = len(shape)
    for order in (last(rank), tuple(range(rank))):
        if moving(shape, order) == list(dims):
            return order
    return (0, *(d for d in range(1, rank) if d not in dims), *dims)
