"""The rows of metrics.jsonl that tell of layers, and how they are read back: one list a quantity over all layers in one
order, to four significant digits. What stays the same, names and grids, is in the first row alone.

    {"kind": "layers", "epoch": 0, "names": ["conv1", ...], "weight_bits": [8, ...], "act_bits": [8, ...],
     "of": [255, ...], "clipped": [0.0024, ...], "levels": [230, ...], ..., "agreement": 0.8242}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FIXED = ("weight_bits", "act_bits", "of")
MEASURED = ("clipped", "levels", "low", "high", "clip", "changed")
"""see `Diagnostics`"""
DIGITS = 4


def layers_row(found: Mapping[str, Any], *, first: bool) -> dict[str, Any]:
    """What a call of `Diagnostics` found, as a row; first: with names and grids. A quantity that no layer has is left
    out, and null where a layer lacks it."""
    layers: Mapping[str, Mapping[str, Any]] = found["layers"]
    columns = {what: [_short(x.get(what)) for x in layers.values()] for what in (*(FIXED if first else ()), *MEASURED)}
    told = {what: column for what, column in columns.items() if any(value is not None for value in column)}
    return {**({"names": list(layers)} if first else {}), **told, "agreement": _short(found.get("agreement"))}


def _short(value: Any) -> Any:
    return float(f"{value:.{DIGITS}g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Looks:
    """What all rows of a run tell.

    names: of the layers. weight_bits, act_bits, of: of each, None: that side is float. epochs: after which it was
    looked, 0: before training. values: {each of `MEASURED`: (layers, looks), NaN where there is none}.
    agreement: of each look, None where no activation is quantized.
    """

    names: list[str]
    weight_bits: list[int | None]
    act_bits: list[int | None]
    of: list[int | None]
    epochs: list[int]
    values: dict[str, np.ndarray]
    agreement: list[float | None]


def read_looks(rows: Iterable[Mapping[str, Any]]) -> Looks | None:
    """Of the rows of kind "layers", in order; None: there are none, or they are of a version before this form."""
    told = [row for row in rows if "layers" not in row]
    if not told or "names" not in told[0]:
        return None
    first = told[0]
    nothing = [None] * len(first["names"])
    weight_bits, act_bits, of = (first.get(what, nothing) for what in FIXED)
    values = {w: np.array([row.get(w, nothing) for row in told], dtype=float).T for w in MEASURED}
    epochs, agreement = [row["epoch"] for row in told], [row["agreement"] for row in told]
    return Looks(first["names"], weight_bits, act_bits, of, epochs, values, agreement)
