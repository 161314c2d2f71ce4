"""What the commands export, evaluate and inspect take and print; no arithmetic."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.table import Table
from tyro.conf import FlagCreatePairsOff, Positional

from spequant.app.runs import evaluate_source, export_source, open_source
from spequant.app.runs.sources import Source, example_of
from spequant.app.terminal import in_words, print_table
from spequant.deploy import FORMATS, LayerCost, Parity, model_costs, packed_costs, program_costs, tflite_costs, totals
from spequant.deploy.engines import ENGINES
from spequant.deploy.tflite_engines import arena_size
from spequant.deploy.tflite_file import read_head
from spequant.files import destination, write_json
from spequant.names import some_of

__all__ = ["Evaluate", "Export", "Inspect", "print_evaluation", "print_export"]

NO_FIGURES = ("source", "recipe", "seed", "engine", "act_bits", "loss", "samples", "seconds")
"""Entries of a row of an evaluation that are no figures of the task."""
NETWORK = "of a packed file made in Python: what makes its float network, package.module:Object or file.py:Object"
DATA = "an .npz with the arrays inputs, as the file takes them, and labels; None: the recipe's test set"
Network = Annotated[str | None, tyro.conf.arg(help=NETWORK)]
Data = Annotated[Path | None, tyro.conf.arg(help=DATA)]


@dataclass(frozen=True)
class Export:
    """Write what a run or a packed file holds as a file to ship, verified against the run on its test set."""

    source: Positional[Path]
    """a run's folder, or a packed file"""
    to: Annotated[
        Literal[tuple(FORMATS)],  # type: ignore[valid-type]
        tyro.conf.arg(help="; ".join(f"{name}: {form.help}" for name, form in FORMATS.items())),
    ]
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            help=f"None: model{', '.join(form.suffix for form in FORMATS.values())} in the run's folder, or next to "
            "the packed file"
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


def print_export(settings: Export) -> None:
    report = export_source(
        settings.source,
        settings.to,
        settings.out,
        act_bits=settings.act_bits,
        round_biases=settings.round_biases,
        preprocessing=settings.preprocessing,
        images=settings.images,
        root=settings.root,
        network=settings.network,
        data=settings.data,
        show=_print_parity,
    )
    exported = report.exported
    if not FORMATS[settings.to].engines:
        print(f"verified: loaded again, the logits of {report.images} {report.what} are equal, bit for bit")
    for name, (network, other) in report.figures.items():
        print(f"onnxruntime: {name} {other:.2f} %, torch {network:.2f} %")
    if exported.islands:
        print(f"in float: {'; '.join(_by_operation(exported.islands))}")
    if exported.batch is not None:
        print(f"takes {exported.batch} image at a time: the network itself counts with the number of images")
    if exported.saturating:
        print(
            f"processors without VNNI or dot products may clip sums in {some_of(exported.saturating)} "
            "(7 bits in training, of the ends --quant.end-bits 7, avoid it)"
        )
    times = exported.float_size / exported.size
    print(f"{exported.path}  {exported.size:,} bytes, {times:.1f} times smaller than in fp32 ({exported.float_size:,})")


def _by_operation(islands: list[str]) -> list[str]:
    """Each operation with the modules that do it, the first three by name."""
    modules: dict[str, list[str]] = {}
    for island in islands:
        module, _, operation = island.rpartition(": ")
        modules.setdefault(operation, []).append(module)
    return [f"{operation} in {some_of(names)}" for operation, names in modules.items()]


def _print_parity(parity: Parity, engine: str) -> None:
    if engine == "torch":
        return  # all answers are equal, or there is an error
    if parity.codes:
        table = Table("codes", "number", f"{engine} / torch", f"{engine} / twin", "forced", "of them ties")
        for c in parity.codes:
            numbers = c.count, c.torch, c.twin, c.forced, c.ties
            table.add_row(c.name, *("-" if n is None else f"{n:,}" for n in numbers))
        print_table(table)
        print(
            "unequal codes, end to end, against the network and against its integer twin; "
            "forced: each layer on the twin's inputs"
        )
    network, other = parity.accuracy
    right = f"; accuracy {other:.2f} %, torch {network:.2f} %" if parity.labelled else ""
    what = "images" if parity.labelled else "answers"
    bits = f"; torch's own with other last bits differs on {parity.own}" if parity.own else ""
    print(f"{engine}: arg-max equal on {100 * parity.agreement:.2f} % of {parity.images} {what}{right}{bits}")
    for values in parity.values:
        print(f"{engine}: {values}")


@dataclass(frozen=True)
class Evaluate:
    """Accuracy of a run or an exported file on its test set."""

    source: Positional[Path]
    """a run's folder, or an exported file"""
    engines: Annotated[tuple[str, ...], tyro.conf.arg(help=f"torch, {', '.join(ENGINES)}; none: the file's own")] = ()
    act_bits: tuple[int, ...] = ()
    """widths of the activations that were trained at the recipe's act_bits; none: as trained"""
    images: int | None = None
    """the first so many test images; None: all"""
    root: Path | None = None
    """folder of the data set; None: the recipe's, or SPEQUANT_DATA"""
    threads: int | None = None
    json: Path | None = None
    """rows as JSON"""
    network: Network = None
    data: Data = None


def print_evaluation(settings: Evaluate) -> None:
    if settings.json is not None:
        destination(settings.json)
    rows = [
        row
        for engine in settings.engines or (None,)
        for row in evaluate_source(
            settings.source,
            engine=engine,
            act_bits=settings.act_bits,
            images=settings.images,
            root=settings.root,
            threads=settings.threads,
            network=settings.network,
            data=settings.data,
        )
    ]
    for row in rows:
        width = "float activations" if row["act_bits"] is None else f"A{row['act_bits']}"
        head = f"{row['recipe']}  {row['engine']}  {width}"
        figures = {name: value for name, value in row.items() if name not in NO_FIGURES}
        loss = f"  loss {row['loss']:.4f}" if "loss" in row else ""
        what = "questions" if "exact_match" in row else "images"
        print(f"{head}  {in_words(figures)}{loss}  {what} {row['samples']}")
    write_json(settings.json, rows)


@dataclass(frozen=True)
class Inspect:
    """Bits, ranges, bytes, multiply-accumulates and bit operations, layer by layer."""

    source: Positional[Path]
    """a run's folder, a packed file, or one of --to onnx or tflite"""
    root: Path | None = None
    """folder of the data set, for a run; None: the recipe's, or SPEQUANT_DATA"""
    json: Annotated[Path | None, tyro.conf.arg(help="layers and totals as JSON")] = None
    network: Network = None
    data: Annotated[Path | None, tyro.conf.arg(help="with --network: an .npz with the array inputs")] = None


def print_inspection(settings: Inspect) -> None:
    if settings.json is not None:
        destination(settings.json)
    source = open_source(settings.source, settings.root, network=settings.network, data=settings.data)
    costs = _costs(source)
    table = Table("layer", "kind", "W", "A", "weights", "activations", "bytes", "MACs", "bit operations")
    for c in costs:
        row = c.row()
        numbers = (_number(row[name]) for name in ("size", "macs", "bit_operations"))
        table.add_row(
            c.name, c.kind, str(c.weight_bits), str(c.act_bits), _range(c.weight_range), _range(c.act_range), *numbers
        )
    total = totals(costs)
    table.add_section()
    numbers = (_number(total[name]) for name in ("size", "macs", "bit_operations"))
    table.add_row("total", "", "", "", f"{total['weights']:,}", "", *numbers)
    print_table(table)
    if total["macs"] is None:
        print(
            f"of the quantized layers what the file says, {total['times_smaller_than_fp32'] or 1:.1f} times smaller "
            "than in fp32; operations need the network (--network and --data)"
        )
    else:
        print(
            f"these layers in fp32: {total['times_smaller_than_fp32']:.1f} times the bytes, "
            f"{total['times_fewer_bit_operations_than_fp32'] or 1:.1f} times the bit operations "
            "(MACs x weight bits x input bits)"
        )
    if source.kind.startswith("tflite"):
        _print_tflite(source.path)
    write_json(settings.json, {"source": str(settings.source), "layers": [c.row() for c in costs], "total": total})


def _print_tflite(path: Path) -> None:
    """What a microcontroller needs for it, and where its engines give other codes than training."""
    flash = f"{path.stat().st_size:,} bytes of flash"
    try:
        print(f"TensorFlow Lite Micro: {flash}, {arena_size(path):,} bytes of memory for tensors and the graph's data")
    except ModuleNotFoundError as error:
        print(f"TensorFlow Lite Micro: {flash}; its memory is not known: {error}")
    for name, counts in read_head(path)["unequal"].items():
        said = ", ".join(f"{count:,} in {engine}" for engine, count in counts.items() if count)
        print(f"{name}: sums that get another code than in training: {said}")


def _range(ends: tuple[float, float] | None) -> str:
    return "float" if ends is None else f"{ends[0]:.3g} .. {ends[1]:.3g}"


def _number(value: int | None) -> str:
    return "-" if value is None else f"{value:,}"


def _costs(source: Source) -> list[LayerCost]:
    if source.program is not None:
        return program_costs(source.program)
    if source.model is not None:
        return model_costs(source.model, example_of(source))
    if source.kind.startswith("tflite"):
        return tflite_costs(source.path)
    if source.loaded.engines:
        raise ValueError(
            f"{source.path} is a file of --to {source.kind}; expected a run or a file of --to packed, onnx or tflite"
        )
    return packed_costs(source.path)
