"""A quantizer's settings as a tensor of its state_dict, and their comparison with the model's when a state is loaded.

The layout of that tensor is decided only here.
"""

import zlib

import torch
from torch import Tensor

UNDECIDED = 2


def encode_settings(
    bits: int | None, signed: bool | None, calibrated: bool, sign_open: bool, kind: type, shape: tuple[int, ...]
) -> Tensor:
    """Return the settings as int64: bits (0 for None), signed (0 no, 1 yes, 2 undecided), calibrated, sign open, kind
    (a checksum of the class's name), then the shape of the ranges."""
    sign = UNDECIDED if signed is None else int(signed)
    return torch.tensor([bits or 0, sign, int(calibrated), int(sign_open), _number_of(kind), *shape])


def decode_flags(settings: Tensor) -> tuple[bool | None, bool, bool]:
    """Return (signed, calibrated, sign open) of settings that `encode_settings` made."""
    sign, calibrated, sign_open = (int(v) for v in settings[1:4])
    return None if sign == UNDECIDED else bool(sign), bool(calibrated), bool(sign_open)


def check_settings(settings: Tensor, place: str, bits: int | None, kind: type, shape: tuple[int, ...]) -> None:
    """Check that saved settings are those of the quantizer that they are loaded into.

    Args:
        settings: tensor of `encode_settings`, from the state.
        place: name of the quantizer in the model, for the message.
        bits, kind, shape: those of the model's quantizer.

    Raises:
        ValueError: another number of bits, another kind, or ranges of another shape.
    """
    if int(settings[0]) != (bits or 0):
        raise ValueError(
            f"{place}: the state holds a quantizer of {int(settings[0]) or 'no'} bits, the model one of "
            f"{bits or 'no'}; prepare the model with the bits that the state was trained at"
        )
    if int(settings[4]) != _number_of(kind):
        raise ValueError(
            f"{place}: the state holds another kind of quantizer than {kind.__name__}; "
            "prepare the model with the kind that the state was trained with"
        )
    if (saved_shape := tuple(settings[5:].tolist())) != shape:
        raise ValueError(
            f"{place}: the state holds ranges of shape {saved_shape}, the model of {shape}; "
            "prepare the model with per_channel as the state was trained"
        )


def _number_of(kind: type) -> int:
    return zlib.crc32(kind.__qualname__.encode())
