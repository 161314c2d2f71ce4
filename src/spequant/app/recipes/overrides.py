"""Bits of single layers, as text: "layer1.*=3/4"."""

from collections.abc import Sequence

Bits = int | tuple[int | None, int | None] | None
"""Of weight and input alike; or of each, None: float; or None: both float."""


def parse_overrides(texts: Sequence[str]) -> dict[str, Bits]:
    """{pattern of layer names: bits} of texts "PATTERN=BITS", "PATTERN=WEIGHT/INPUT" or "PATTERN=float"; one of a pair
    may be "float", too.

    ValueError names a text that is none of them, or has bits beyond 1 to 8.
    """
    found: dict[str, Bits] = {}
    for text in texts:
        pattern, _, value = text.rpartition("=")
        sides = [_bits(side) for side in value.split("/")]
        if not pattern or len(sides) > 2 or 0 in sides:
            raise ValueError(
                f"quant.overrides has {text!r}; expected PATTERN=BITS, PATTERN=WEIGHT/INPUT or PATTERN=float, bits "
                "from 1 to 8, e.g. layer1.*=3/4"
            )
        found.pop(pattern, None)  # given twice, it stands where it was given last
        found[pattern] = sides[0] if len(sides) == 1 else (sides[0], sides[1])
    return found


def _bits(text: str) -> int | None:
    """None: float; 0: no such number of bits."""
    return None if text == "float" else int(text) if text in "12345678" and len(text) == 1 else 0
