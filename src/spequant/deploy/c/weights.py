"""Weights of a layer as a C program has them: whole numbers from 0 on, packed at their bits, in the order in which a
window is gathered."""

from dataclasses import dataclass
from math import gcd

import numpy as np

from spequant.deploy.integers import INT16_MAX, INT32_MAX
from spequant.deploy.operations import Weighted

INDEX = 2**16 - 1


@dataclass(frozen=True)
class Weights:
    """A weight is lows[output] + step * stored, stored 0 .. 2^bits - 1.

    values: int64 (outputs, window), as they are multiplied: the smallest whole numbers that do. stored: of the same
    shape. unit: what a sum of products is multiplied by to be one of `Integers`, whose bias is `bias` and whose fp32
    scale is `scale`, above zero.
    """

    values: np.ndarray
    stored: np.ndarray
    lows: np.ndarray
    step: int
    bits: int
    unit: int
    bias: np.ndarray
    scale: np.ndarray

    @property
    def largest(self) -> int:
        """Of what is stored."""
        return int(self.stored.max(initial=0))

    @property
    def chunk(self) -> int:
        """Weights that together take whole bytes."""
        return 8 // gcd(8, self.bits)

    @property
    def chunks(self) -> int:
        return -(-self.stored.shape[1] // self.chunk)

    @property
    def row(self) -> int:
        """Bytes of an output's."""
        return self.chunks * self.chunk * self.bits // 8


def weights_of(op: Weighted, window: tuple[int, ...] | None = None) -> Weights:
    """Of `op`; window: (channels, *positions) of a linear layer that reads all of them, in torch's order.

    ValueError: sums that an int32 does not hold.
    """
    form = op.integers
    values = form.weight.numpy().astype(np.int64)
    if window is not None:
        values = values.reshape(len(values), *window)
    values = np.moveaxis(values, 1, -1).reshape(len(values), -1)
    bias, scale = form.bias.numpy().astype(np.int64), form.scale.numpy()
    negative = scale < 0
    values, bias = np.where(negative[:, None], -values, values), np.where(negative, -bias, bias)
    unit = max(1, int(np.gcd.reduce(values, axis=None)))
    values = values // unit
    lows = values.min(1)
    apart = values - lows[:, None]
    step = max(1, int(np.gcd.reduce(apart, axis=None)))
    stored = apart // step
    bits = max(1, int(stored.max()).bit_length())
    weights = Weights(values, stored, lows, step, bits, unit, bias, np.abs(scale))
    codes = op.source.high - op.source.low
    largest = values.shape[1] * codes * max(step * weights.largest, int(np.abs(lows).max()))
    if largest > INT32_MAX:
        raise ValueError(
            f"{op.name}: its sums of stored codes may reach {largest:,}; expected at most {INT32_MAX:,}, an int32. "
            "Give it fewer bits or inputs"
        )
    if values.shape[1] > INDEX or max(step, int(np.abs(lows).max())) > INT16_MAX:
        raise ValueError(
            f"{op.name}: {values.shape[1]:,} products for each output; expected at most {INDEX:,}: --to onnx takes it"
        )
    return weights


def packed(w: Weights) -> np.ndarray:
    """uint8, one output after the other: bits of a weight from the lowest on."""
    codes = np.zeros((len(w.stored), w.chunks * w.chunk), np.uint8)
    codes[:, : w.stored.shape[1]] = w.stored
    bits = (codes[:, :, None] >> np.arange(w.bits, dtype=np.uint8)) & 1
    return np.packbits(bits.reshape(len(codes), -1), axis=1, bitorder="little")


@dataclass(frozen=True)
class Lanes:
    """Positions that are computed together; bits of the sum of each; chunks of weights whose products that holds."""

    count: int
    bits: int
    run: int


def lanes_for(w: Weights, codes: int, positions: int) -> Lanes:
    """codes: the largest that is stored of the input."""
    product = max(1, w.largest * codes)
    window = w.chunks * w.chunk
    if positions > 2 and product * window <= 0xFFFF and 0xFF // product >= max(4, w.chunk):
        return Lanes(4, 8, 0xFF // product // w.chunk)
    if positions > 1 and 0xFFFF // product >= max(4, w.chunk):
        return Lanes(2, 16, min(INDEX, 0xFFFF // product // w.chunk))
    if positions > 1 and w.bits == 8:
        return Lanes(2, 32, INDEX)
    return Lanes(1, 32, INDEX)
