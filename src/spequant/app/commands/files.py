"""Settings of the commands that write, measure and look into files: export, evaluate, inspect."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from spequant.app.commands.index import index

FORMATS, ENGINES = index()["formats"], index()["engines"]
Network = Annotated[
    str | None,
    arg(help="of a packed file made in Python: what makes its float network, package.module:Object or file.py:Object"),
]
Data = Annotated[
    Path | None,
    arg(help="an .npz with the arrays inputs, as the file takes them, and labels; None: the recipe's test set"),
]


@dataclass(frozen=True)
class Export:
    """Write what a run or a packed file holds as a file to ship, verified against the run on its test set."""

    source: Annotated[Path, Positional, arg(metavar="RUN|FILE")]
    """a run's folder, or a packed file"""
    to: Annotated[
        Literal[tuple(FORMATS)],  # type: ignore[valid-type]
        arg(help="; ".join(f"{name}: {form['help']}" for name, form in FORMATS.items())),
    ]
    out: Annotated[
        Path | None,
        arg(
            help=f"the file; None: model{', '.join(form['suffix'] for form in FORMATS.values())} in the run's folder, "
            "or next to the packed file"
        ),
    ] = None
    act_bits: int | None = None
    """width of the activations that were trained at the recipe's act_bits; None: as trained"""
    round_biases: FlagCreatePairsOff[bool] = False
    """put biases on integer arithmetic's grid first; a recipe's run has done that at its end"""
    preprocessing: FlagCreatePairsOff[bool] = False
    """the graph takes uint8 images, and scales and normalises them itself"""
    images: int | None = None
    """verify on the first so many test images; None: on all"""
    root: Path | None = None
    """folder of the data set; None: the recipe's, or SPEQUANT_DATA"""
    network: Network = None
    data: Data = None
    verbose: FlagCreatePairsOff[bool] = False
    """print the comparison layer by layer, too, and what is computed in float"""


@dataclass(frozen=True)
class Evaluate:
    """Accuracy of a run or an exported file on its test set."""

    source: Annotated[Path, Positional, arg(metavar="RUN|FILE")]
    """a run's folder, or an exported file"""
    engines: Annotated[tuple[str, ...], arg(help=f"torch, {', '.join(ENGINES)}; none: the file's own")] = ()
    act_bits: tuple[int, ...] = ()
    """widths of the activations that were trained at the recipe's act_bits; none: as trained"""
    images: int | None = None
    """the first so many test images; None: all"""
    root: Path | None = None
    """folder of the data set; None: the recipe's, or SPEQUANT_DATA"""
    threads: int | None = None
    """threads of the engine; None: as many as torch uses"""
    json: Path | None = None
    """a file for the rows as JSON"""
    network: Network = None
    data: Data = None


@dataclass(frozen=True)
class Inspect:
    """Bits, ranges, bytes, multiply-accumulates and bit operations, layer by layer, against fp32."""

    source: Annotated[Path, Positional, arg(metavar="RUN|FILE")]
    """a run's folder, a packed file or one of --to onnx"""
    root: Path | None = None
    """folder of the data set, for a run; None: the recipe's, or SPEQUANT_DATA"""
    json: Path | None = None
    """a file for layers and totals as JSON"""
    network: Network = None
    data: Annotated[Path | None, arg(help="with --network: an .npz with the array inputs")] = None
