"""A quantizer's settings as a tensor of its state_dict, and their comparison with the model's when a state is loaded.

The layout of that tensor is decided only here.
"""

import zlib
from collections.abc import Mapping

import torch
from torch import Tensor

UNDECIDED = 2


def encode_settings(
    bits: int | None,
    signed: bool | None,
    calibrated: bool,
    sign_open: bool,
    kind: str,
    shape: tuple[int, ...],
    options: str = "",
) -> Tensor:
    """Return the settings as int64: bits (0 for None), signed (0 no, 1 yes, 2 undecided), calibrated, sign open, kind
    (a checksum of the class's name and of `options`, see `Quantizer.grid_options`), then the shape of the ranges."""
    sign = UNDECIDED if signed is None else int(signed)
    return torch.tensor([bits or 0, sign, int(calibrated), int(sign_open), _number_of(kind, options), *shape])


def decode_flags(settings: Tensor) -> tuple[bool | None, bool, bool]:
    """Return (signed, calibrated, sign open) of settings that `encode_settings` made."""
    sign, calibrated, sign_open = (int(v) for v in settings[1:4])
    return None if sign == UNDECIDED else bool(sign), bool(calibrated), bool(sign_open)


def check_settings(
    settings: Tensor | None, place: str, bits: int | None, kind: str, shape: tuple[int, ...], options: str = ""
) -> None:
    """Check that saved settings are those of the quantizer that they are loaded into.

    Args:
        settings: tensor of `encode_settings`, from the state; None, where the state lacks it, is not checked.
        place: name of the quantizer in the model, for the message.
        bits, kind, shape, options: those of the model's quantizer. States of older versions lack the options.

    Raises:
        ValueError: another number of bits, another kind, other options, or ranges of another shape.
    """
    if settings is None:
        return
    if int(settings[0]) != (bits or 0):
        raise ValueError(
            f"{place}: the state holds a quantizer of {int(settings[0]) or 'no'} bits, the model one of "
            f"{bits or 'no'}; prepare the model with the bits that the state was trained at"
        )
    if int(settings[4]) not in (_number_of(kind, options), _number_of(kind)):
        raise ValueError(
            f"{place}: the state holds another kind of quantizer than {kind}"
            f"{f' with {options}' if options else ''}; prepare the model with the kind and the options that the state "
            "was trained with"
        )
    if (saved_shape := tuple(settings[5:].tolist())) != shape:
        raise ValueError(
            f"{place}: the state holds ranges of shape {saved_shape}, the model of {shape}; "
            "prepare the model with per_channel as the state was trained"
        )


def reshape_older(state: dict[str, Tensor], prefix: str, parameters: Mapping[str, Tensor | None]) -> None:
    """Give ranges of shape (), which older states hold as 0-dim tensors, the shape of the parameters, in place."""
    for name, parameter in parameters.items():
        saved = state.get(prefix + name)
        if parameter is not None and saved is not None and saved.dim() == 0:
            state[prefix + name] = saved.reshape(parameter.shape)


def _number_of(kind: str, options: str = "") -> int:
    return zlib.crc32(f"{kind} {options}".strip().encode())
