"""Windows and single numbers as calls of kernels: pooling, means, tables, and where codes begin."""

from math import prod

import numpy as np
import torch

from spequant.deploy.c.emitter import ON_A_GRID, CEmitter, Table, entries
from spequant.deploy.c.moves import moved_to, reshaped_as, three
from spequant.deploy.c.rounding import Rounding, rounding, scaled
from spequant.deploy.c.tensors import WORD, Tensor
from spequant.deploy.operations import Amax, AvgPool, Clamp, Function, MaxPool, Mean, Operation, Quantize
from spequant.deploy.operations.positions import unit
from spequant.deploy.operations.windows import sides


def max_pool(e: CEmitter, op: MaxPool) -> Tensor:
    source, out = e.value(op.inputs[0]), e.new(op)
    _pool(e, op, source, out, (op.kernel, op.stride, sides(op.padding, len(op.kernel))[0]), moved=_same(source, out))
    return out


def avg_pool(e: CEmitter, op: AvgPool) -> Tensor:
    source, out = e.value(op.inputs[0]), e.new(op)
    volume = prod(op.kernel)
    counts = [volume] if op.counts_padding else list(range(1, volume + 1))
    window = op.kernel, op.stride, sides(op.padding, len(op.kernel))[0]
    _mean(e, op, source, out, window, counts, volume, by_count=int(not op.counts_padding))
    return out


def mean(e: CEmitter, op: Mean) -> Tensor:
    source = _gathered(e, op)
    out = e.new(op, (source.channels, 1))
    count = source.positions
    _mean(e, op, source, out, ((count,), (1,), (0,)), [count], count)
    return reshaped_as(e, op, out, op.shape[1:])


def amax(e: CEmitter, op: Amax) -> Tensor:
    source = _gathered(e, op)
    out = e.new(op, (source.channels, 1))
    _pool(e, op, source, out, ((source.positions,), (1,), (0,)), moved=_same(source, out))
    return reshaped_as(e, op, out, op.shape[1:])


def _gathered(e: CEmitter, op: Mean | Amax) -> Tensor:
    """Its input with the dimensions that it takes together as positions, and all others as channels."""
    source = e.value(op.inputs[0])
    rank = len(source.shape)
    taken = [d - 1 for d in op.dims] or list(range(1, rank))
    left = [d for d in range(rank) if d not in taken]
    order = (*left, *taken)
    if order != tuple(range(rank)):
        source = moved_to(e, op, source, order)
    shape = prod(source.shape[: len(left)]), prod(source.shape[len(left) :])
    return reshaped_as(e, op, source, shape)


def _same(source: Tensor, out: Tensor) -> int:
    return 0 if source.bits == WORD else source.low - out.low


def _mean(
    e: CEmitter,
    op: Mean | AvgPool,
    source: Tensor,
    out: Tensor,
    window: tuple[tuple[int, ...], ...],
    counts: list[int],
    volume: int,
    by_count: int = 0,
) -> None:
    """ValueError: the mean of what is no code, on a grid."""
    if source.bits == WORD and op.grid is not None:
        raise ValueError(f"{op.name}: {op.WORD} of float values on a grid has no form in the format c; {ON_A_GRID}")
    how = None if source.bits == WORD else e.rounded(op, _mean_rounding(e, op, source, counts, volume))
    _pool(e, op, source, out, window, mean=1, by_count=by_count, low=source.low, rounding=how)


def _mean_rounding(e: CEmitter, op: Mean | AvgPool, source: Tensor, counts: list[int], volume: int) -> Rounding:
    """One for each count of numbers in a window."""
    of = torch.tensor([float(c) for c in counts])
    zero = np.zeros(len(counts), np.int64)
    if op.grid is None:
        grid = op.inputs[0].grid
        assert grid is not None
        return scaled(grid.step / of.double().numpy() / e.word, np.zeros(len(counts)), zero)
    factor = (unit(op) / of).numpy()
    least, most = min(source.low, 0), max(source.high, 0)
    first, last = (np.full(len(counts), end * volume, np.int64) for end in (least, most))

    def twin(sums: np.ndarray) -> np.ndarray:
        return sums.astype(np.float32) * factor[:, None]

    return rounding(twin, factor.astype(np.float64), first, last, op.grid.low, op.grid.high, zero)


def _pool(
    e: CEmitter, op: Operation, source: Tensor, out: Tensor, window: tuple[tuple[int, ...], ...], **more: object
) -> None:
    kernel, stride, before = window
    rank = len(kernel)
    size = source.shape[1:] if len(source.shape) - 1 == rank else (source.positions,)
    to = out.shape[1:] if len(out.shape) - 1 == rank else (out.positions,)
    sizes = {"from": source, "to": out, "size": three(size), "out": three(to), "kernel": three(kernel)}
    sizes |= {"stride": three(stride), "before": three(before, 0), "channels": source.channels}
    e.call("pool", op, (source,), (out,), **sizes, **more)


def quantize_call(e: CEmitter, op: Quantize) -> Tensor:
    if op.inputs[0] is e.program.input:
        return _entered(e, op)
    source, out = e.value(op.inputs[0]), e.new(op)
    assert op.grid is not None
    if source.bits != WORD:
        codes = torch.arange(source.low, source.high + 1, dtype=torch.int32)
        return _looked_up(e, op, source, out, op.compute([codes]))
    limit = np.asarray([2**30], np.int64)  # twice what `CEmitter.word` leaves
    rate, word = np.float64(np.float32(op.grid.rate)), source.unit

    def twin(sums: np.ndarray) -> np.ndarray:
        return ((sums * word).astype(np.float32) * np.float32(rate)).astype(np.float32)

    slope = np.asarray([rate * word])
    how = rounding(twin, slope, -limit, limit, op.grid.low, op.grid.high, np.zeros(1, np.int64))
    sizes = {"positions": out.positions, "channels": out.channels}
    e.call("round", op, (source,), (out,), **{"from": source}, to=out, **sizes, rounding=how)
    return out


def function(e: CEmitter, op: Function) -> Tensor:
    source, out = e.value(op.inputs[0]), e.new(op)
    low = op.inputs[0].grid
    assert low is not None and low.low == source.low
    return _looked_up(e, op, source, out, op.table)


def _looked_up(e: CEmitter, op: Operation, source: Tensor, out: Tensor, values: torch.Tensor) -> Tensor:
    """values: (codes,) or (codes, channels), not yet rounded."""
    assert op.grid is not None
    codes = torch.round(values).clamp(op.grid.low, op.grid.high).to(torch.int32) - op.grid.low
    by_channel = codes.dim() > 1
    entries = 2**source.bits
    table = np.zeros((codes.shape[1] if by_channel else 1, entries), np.uint8)
    table[:, : len(codes)] = codes.t().numpy() if by_channel else codes.numpy()
    sizes = {"positions": out.positions, "channels": out.channels}
    fields = {"from": source, "to": out, **sizes, "table": Table("uint8_t", table)}
    e.call("table", op, (source,), (out,), in_place=((source, out),), **fields, stride=entries if by_channel else 0)
    return out


def _entered(e: CEmitter, op: Quantize) -> Tensor:
    """The input's codes: of pixels by a table, or given as they are."""
    out = e.new(op)
    assert op.grid is not None
    sizes = {"positions": out.positions, "channels": out.channels}
    if e.pixels is None:
        if len({o.grid for o in entries(e.program)}) > 1:
            raise ValueError(
                f"{op.name}: the input is read by quantizers of several ranges, so that it has no codes of its own "
                "in the format c; export with preprocessing, which makes the input uint8 pixels"
            )
        e.call("codes", op, (), (out,), to=out, **sizes, first=out.low - input_zero(op), top=out.high - out.low)
        return out
    values = torch.from_numpy(e.pixels) * op.grid.rate
    codes = torch.round(values).clamp(op.grid.low, op.grid.high).numpy().astype(np.int64) - op.grid.low
    alike = bool((codes == codes[:1]).all())
    table = Table("uint8_t", codes[:1] if alike else codes)
    e.call("pixels", op, (), (out,), to=out, **sizes, table=table, stride=0 if alike else 256)
    return out


def input_zero(op: Quantize) -> int:
    """What is subtracted from codes of the input, so that they are int8."""
    assert op.grid is not None
    return max(0, op.grid.high - 127)


def clamp(e: CEmitter, op: Clamp) -> Tensor:
    """ValueError: of the input itself."""
    source, out = e.value(op.inputs[0]), e.new(op)
    if source.bits != WORD:
        raise ValueError(f"{op.name}: {op.WORD} of codes in float has no form in the format c; {ON_A_GRID}")
    ends = (
        int(np.clip(round(v / out.unit), -(2**31), 2**31 - 1)) if np.isfinite(v) else None for v in (op.low, op.high)
    )
    low, high = ends
    numbers = {"low": -(2**31) if low is None else low, "high": 2**31 - 1 if high is None else high}
    sizes = {"positions": out.positions, "channels": out.channels}
    fields = {"from": source, "to": out, **sizes, **numbers}
    e.call("clamp", op, (source,), (out,), in_place=((source, out),), **fields)
    return out
