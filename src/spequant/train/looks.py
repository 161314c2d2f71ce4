"""The rows of metrics.jsonl about layers: how they are written and read.

A row has one list per quantity, over all layers in the same order, to four significant digits. Names and grids, which
stay the same, are only in the first row.

    {"kind": "layers", "epoch": 0, "names": ["conv1", ...], "weight_bits": [8, ...], "act_bits": [8, ...],
     "of": [255, ...], "clipped": [0.0024, ...], "levels": [230, ...], ..., "agreement": 0.8242}
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

FIXED = ("weight_bits", "act_bits", "of")
MEASURED = ("clipped", "levels", "low", "high", "clip", "changed")
"""Quantities that stay the same in a run, and those that each call of `Diagnostics` measures; see there."""
SIGNIFICANT_DIGITS = 4


def layers_row(measured: Mapping[str, Any], *, first: bool) -> dict[str, Any]:
    """Make a row of what a call of `Diagnostics` returned.

    Args:
        measured: What `Diagnostics` returned.
        first: Whether this is the first row of a run, which has names and grids.

    Returns:
        The row, without quantities that no layer has; None stands where a single layer lacks one.
    """
    layers: Mapping[str, Mapping[str, Any]] = measured["layers"]
    quantities = (*(FIXED if first else ()), *MEASURED)
    columns = {name: [_rounded(x.get(name)) for x in layers.values()] for name in quantities}
    columns = {name: column for name, column in columns.items() if any(value is not None for value in column)}
    return {**({"names": list(layers)} if first else {}), **columns, "agreement": _rounded(measured.get("agreement"))}


def _rounded(value: Any) -> Any:
    return float(f"{value:.{SIGNIFICANT_DIGITS}g}") if isinstance(value, float) else value


@dataclass(frozen=True)
class Looks:
    """All rows of a run together; a look is one row.

    Attributes:
        names: Names of the layers.
        weight_bits: Bits of each weight; None: float.
        act_bits: Bits of each input; None: float.
        of: Number of levels of each input; None: float.
        epochs: For each look, how many epochs were done; 0: before training.
        values: {each of `MEASURED`: array (layers, looks), NaN where a value is missing}.
        agreement: For each look, the agreement of teacher and student, 0 to 1; None if no activation is quantized.
    """

    names: list[str]
    weight_bits: list[int | None]
    act_bits: list[int | None]
    of: list[int | None]
    epochs: list[int]
    values: dict[str, np.ndarray]
    agreement: list[float | None]


def read_looks(rows: Iterable[Mapping[str, Any]]) -> Looks | None:
    """Read the rows of kind "layers" of a run.

    Args:
        rows: The rows, in the order of the file.

    Returns:
        All of them together; None if there are none, or only rows that an earlier version wrote in another form.
    """
    looks = [row for row in rows if "layers" not in row]
    if not looks or "names" not in looks[0]:
        return None
    first = looks[0]
    missing = [None] * len(first["names"])
    weight_bits, act_bits, of = (first.get(name, missing) for name in FIXED)
    values = {name: np.array([row.get(name, missing) for row in looks], dtype=float).T for name in MEASURED}
    epochs, agreement = [row["epoch"] for row in looks], [row["agreement"] for row in looks]
    return Looks(first["names"], weight_bits, act_bits, of, epochs, values, agreement)
