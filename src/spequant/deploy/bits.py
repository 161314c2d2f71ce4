"""Codes of 1 to 8 bits side by side in bytes: numbers in, numbers out."""

import numpy as np


def packed_size(count: int, width: int) -> int:
    """Bytes that `count` codes of `width` bits take."""
    return (count * width + 7) // 8


def pack_bits(codes: np.ndarray, width: int) -> np.ndarray:
    """(n,) uint8, each below 2^`width` -> bytes. Code i takes the bits i * width ..., the least significant first;
    bit j is bit j % 8 of byte j // 8; the last byte is filled up with zeros.

    ValueError: a code that does not fit.
    """
    if codes.size and int(codes.max()) >= 1 << width:
        raise ValueError(f"codes reach {int(codes.max())}; expected less than {1 << width}, for {width} bits")
    bits = np.unpackbits(codes.reshape(-1, 1), axis=1, bitorder="little", count=width)
    return np.packbits(bits, bitorder="little")


def unpack_bits(data: np.ndarray, count: int, width: int) -> np.ndarray:
    """The `count` codes (uint8) in what `pack_bits` made. ValueError: another number of bytes, or bits left over."""
    if data.size != packed_size(count, width):
        raise ValueError(
            f"{count} codes of {width} bits are in {data.size} bytes; expected {packed_size(count, width)}"
        )
    bits = np.unpackbits(data, bitorder="little")
    if bits[count * width :].any():
        raise ValueError(f"the bits after the last of {count} codes are not zero; expected zeros")
    return np.packbits(bits[: count * width].reshape(count, width), axis=1, bitorder="little").reshape(-1)
