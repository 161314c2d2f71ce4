"""Numbers of bits, checked, and numbers of levels as data."""

import torch
from torch import Tensor


def check_bits(bits: object, argument: str, *, both_signs: bool = False, or_float: bool = False) -> None:
    """Check that `bits` is a whole number from 1 to 8.

    Args:
        bits: the value to check.
        argument: name of the argument that holds it, for the message.
        both_signs: True asks for 2 bits or more, which a grid with values on both sides of zero needs.
        or_float: True also accepts None, which leaves the tensor float.

    Raises:
        ValueError: `bits` is another value.
    """
    if bits is None and or_float:
        return
    least = 2 if both_signs else 1
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= 8:
        reason = ": one bit has no grid of values on both sides of zero" if both_signs else ""
        other = ", or None to leave it float" if or_float else ""
        raise ValueError(f"{argument} is {bits!r}; expected a whole number of bits from {least} to 8{reason}{other}")


def level_tensor(levels: int, like: Tensor | None = None) -> Tensor:
    """Return a number of levels as a 0-dim fp32 tensor, on the device of `like`; the default is the CPU.

    Quantizers hold the number as data, so that torch.compile does not compile again when it changes.
    """
    return torch.tensor(float(levels), device=None if like is None else like.device)
