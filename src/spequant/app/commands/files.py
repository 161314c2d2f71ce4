"""Settings of the commands that write, measure and look into files: export, evaluate, inspect."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

from spequant.app.commands.index import index

FORMATS, ENGINES = index()["formats"], index()["engines"]
NetworkArgument = Annotated[
    str | None,
    arg(help="of a packed file made in Python: what makes its float network, package.module:Object or file.py:Object"),
]
Arrays = Annotated[
    Path | None,
    arg(
        help="an .npz with the arrays inputs, as the file takes them, or inputs by name, e.g. input_ids and "
        "attention_mask; and labels; None: the recipe's test set"
    ),
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
    network: NetworkArgument = None
    arrays: Arrays = None
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
    network: NetworkArgument = None
    arrays: Arrays = None


@dataclass(frozen=True)
class Inspect:
    """Bits, ranges, bytes, multiply-accumulates and bit operations, layer by layer, against fp32."""

    source: Annotated[Path, Positional, arg(metavar="RUN|FILE")]
    """a run's folder, or an exported file; of one of --to mixed, openvino or qonnx what it is as a whole"""
    root: Path | None = None
    """folder of the data set, for a run; None: the recipe's, or SPEQUANT_DATA"""
    json: Path | None = None
    """a file for layers and totals as JSON"""
    network: NetworkArgument = None
    arrays: Annotated[Path | None, arg(help="with --network: an .npz with the array inputs, or inputs by name")] = None


@dataclass(frozen=True)
class Predict:
    """The most probable classes of images of your own. Images without an answer are named, and the exit status is 1."""

    source: Annotated[Path, Positional, arg(metavar="RUN|FILE")]
    """a run's folder, or an exported file"""
    files: Annotated[tuple[str, ...], Positional, arg(metavar="IMAGE ...")]
    """files; folders, which stand for all images in them; patterns, e.g. 'photos/*.jpg'"""
    top: int = 3
    """classes per image"""
    csv: Path | None = None
    """a file for the answers as CSV: image, rank, class (its number), name, probability, error"""
    engine: Annotated[str | None, arg(help=f"torch, {', '.join(ENGINES)}; None: the file's own")] = None
    network: Annotated[
        str | None,
        arg(help="of a packed file made in Python: its float network, package.module:Object or file.py:Object"),
    ] = None
    mean: tuple[float, ...] | None = None
    """per channel, or one for all, of images scaled to [0, 1]; None, also for all below: as the file says"""
    std: tuple[float, ...] | None = None
    """deviation, alike"""
    size: int | None = None
    """side of the network's inputs, pixels"""
    crop_pct: float | None = None
    """share of the scaled image that the crop takes: the shorter side is scaled to size / crop_pct"""
    interpolation: Literal["nearest", "bilinear", "bicubic", "box", "hamming", "lanczos"] | None = None
    """of scaling"""
