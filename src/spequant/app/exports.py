"""What the commands export, evaluate and inspect take and print; no arithmetic."""

import shlex
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from spequant.app.commands.files import Evaluate, Export, Inspect
from spequant.app.commands.screen import print_table
from spequant.app.runs import evaluate_source, export_source, open_source
from spequant.app.runs.sources import Source, example_of
from spequant.app.terminal import Terminal, numbers_in_words
from spequant.deploy import (
    FORMATS,
    Exported,
    LayerCost,
    Parity,
    model_costs,
    packed_costs,
    program_costs,
    tflite_costs,
    totals,
)
from spequant.deploy.c.manifest import read_manifest
from spequant.deploy.cost import c_costs
from spequant.deploy.exporting import times_fp32
from spequant.deploy.running import TORCH
from spequant.deploy.tflite_engines import arena_size
from spequant.deploy.tflite_file import read_head
from spequant.files import destination, write_json
from spequant.names import some_of
from spequant.train import keep_freed_memory

NO_FIGURES = ("source", "recipe", "seed", "engine", "act_bits", "loss", "samples", "seconds")
"""Entries of a row of an evaluation that are no figures of the task."""


def print_export(settings: Export) -> None:
    """Export, and print the verdict of the comparison, the file, and how to run it; if `verbose`, the rest as well."""
    keep_freed_memory()
    with Terminal(settings.source.name) as reporter:
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
            arrays=settings.arrays,
            show=partial(_print_parity, verbose=settings.verbose),
            reporter=reporter,
        )
    exported = report.exported
    if not FORMATS[settings.to].engines:
        print(f"verified: loaded again, the logits of {report.images} {report.what} are equal, bit for bit")
    if report.figures:
        pairs = (f"{name} {other:.2f} %, torch {network:.2f} %" for name, (network, other) in report.figures.items())
        print(f"onnxruntime: {'; '.join(pairs)}")
    if settings.verbose:
        _print_details(exported)
    times = times_fp32(exported.size, exported.float_size)
    print(f"{exported.path}  {exported.size:,} bytes, {times} ({exported.float_size:,})")
    print(f"to run it: {_command(settings, exported)}, or spequant.load in Python{_limits(exported)}")


def _limits(exported: Exported) -> str:
    """Return what is to be known before the file runs elsewhere."""
    batch = "" if exported.batch is None else f"; takes {exported.batch} image at a time"
    return batch + ("; processors without VNNI may answer otherwise (--verbose)" if exported.saturating else "")


def _print_details(exported: Exported) -> None:
    """Print what is computed in float, and which layers some processors compute otherwise."""
    if exported.islands:
        print(f"in float: {'; '.join(_by_operation(exported.islands))}")
    if exported.saturating:
        print(
            f"processors without VNNI or dot products may clip sums in {some_of(exported.saturating)} "
            "(7 bits in training, of the ends --quant.end-bits 7, avoid it)"
        )


def _command(settings: Export, exported: Exported) -> str:
    """Return the command that runs the file."""
    options: dict[str, object] = {"root": settings.root, "arrays": settings.arrays}
    if not FORMATS[settings.to].engines:
        options["network"] = settings.network
    words = [word for name, value in options.items() if value is not None for word in (f"--{name}", str(value))]
    return shlex.join(["spequant", "evaluate", str(exported.path), *words])


def _by_operation(islands: list[str]) -> list[str]:
    """Each operation with the modules that do it, the first three by name."""
    modules: dict[str, list[str]] = {}
    for island in islands:
        module, _, operation = island.rpartition(": ")
        modules.setdefault(operation, []).append(module)
    return [f"{operation} in {some_of(names)}" for operation, names in modules.items()]


def _print_parity(parity: Parity, engine: str, *, verbose: bool) -> None:
    """Print how an engine's answers compare with the network's; if `verbose`, codes and values as well."""
    if engine == TORCH:
        return  # all answers are equal, or there is an error
    if verbose and parity.codes:
        _print_codes(parity, engine)
    network, other = parity.accuracy
    right = f"; accuracy {other:.2f} %, torch {network:.2f} %" if parity.labelled else ""
    what = "images" if parity.labelled else "answers"
    bits = f"; torch's own with other last bits differs on {parity.unstable}" if parity.unstable else ""
    same = f"arg-max equal on {100 * parity.agreement:.2f} % of {parity.images} {what}"
    print(f"{engine}: {same if parity.of_choices else parity.answers}{right}{bits}")
    if verbose:
        for values in parity.values:
            print(f"{engine}: {values}")


def _print_codes(parity: Parity, engine: str) -> None:
    """Print a table with the codes of each layer, and how many the engine computes otherwise."""
    table = Table("codes", "number", f"{engine} / torch", f"{engine} / twin", "forced", "of them ties")
    for c in parity.codes:
        numbers = c.count, c.torch, c.twin, c.forced, c.ties
        table.add_row(c.name, *("-" if n is None else f"{n:,}" for n in numbers))
    print_table(table)
    print(
        "unequal codes, end to end, against the network and against its integer twin; "
        "forced: each layer on the twin's inputs"
    )


def print_evaluation(settings: Evaluate) -> None:
    """Evaluate, and print a line per engine and width."""
    keep_freed_memory()
    if settings.json is not None:
        destination(settings.json)
    with Terminal(settings.source.name) as reporter:
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
                arrays=settings.arrays,
                reporter=reporter,
            )
        ]
    for row in rows:
        width = "float activations" if row["act_bits"] is None else f"A{row['act_bits']}"
        head = f"{row['recipe']}  {row['engine']}  {width}"
        figures = {name: value for name, value in row.items() if name not in NO_FIGURES}
        loss = f"  loss {row['loss']:.4f}" if "loss" in row else ""
        what = "questions" if "exact_match" in row else "images" if settings.arrays is None else "samples"
        print(f"{head}  {numbers_in_words(figures)}{loss}  {what} {row['samples']}")
    write_json(settings.json, rows)


def print_inspection(settings: Inspect) -> None:
    """Print what each layer holds and costs, and the total against fp32."""
    if settings.json is not None:
        destination(settings.json)
    with Terminal(settings.source.name) as reporter:
        reporter.phase("loading network and data")
        source = open_source(settings.source, settings.root, network=settings.network, arrays=settings.arrays)
        has_layers = _has_layers(source)
        if has_layers:
            reporter.phase("counting operations")
        costs = _costs(source) if has_layers else []
    if not has_layers:
        _print_file(settings, source)
        return
    total = totals(costs)
    print_table(_table_of_costs(costs, total))
    if total["macs"] is None:
        print(
            f"of the quantized layers what the file says, {total['times_smaller_than_fp32'] or 1:.1f} times smaller "
            "than in fp32; operations need the network (--network and --arrays)"
        )
    else:
        print(
            f"these layers in fp32: {total['times_smaller_than_fp32']:.1f} times the bytes, "
            f"{total['times_fewer_bit_operations_than_fp32'] or 1:.1f} times the bit operations "
            "(MACs x weight bits x input bits)"
        )
    names = source.loaded.classes
    if names is not None:
        print(f"classes: {len(names)}: {some_of(names, separator='; ')}")
    if source.kind.startswith("tflite"):
        _print_tflite(source.path)
    if source.kind == "c":
        _print_c(source.path)
    facts = {"source": str(settings.source), "classes": names, "layers": [c.row() for c in costs], "total": total}
    write_json(settings.json, facts)


def _table_of_costs(costs: Sequence[LayerCost], total: Mapping[str, Any]) -> Table:
    table = Table("layer", "kind", "W", "A", "weights", "activations", "bytes", "MACs", "bit operations")
    for c in costs:
        numbers = _numbers(c.row())
        table.add_row(
            c.name, c.kind, str(c.weight_bits), str(c.act_bits), _range(c.weight_range), _range(c.act_range), *numbers
        )
    table.add_section()
    table.add_row("total", "", "", "", f"{total['weights']:,}", "", *_numbers(total))
    return table


def _numbers(row: Mapping[str, Any]) -> list[str]:
    values = (row[name] for name in ("size", "macs", "bit_operations"))
    return ["-" if value is None else f"{value:,}" for value in values]


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


def _print_c(folder: Path) -> None:
    """What a machine needs for it beside the code of its kernels, and where its codes are others than in training."""
    head = read_manifest(folder)
    stack = "" if head["stack"] is None else f", {head['stack']:,} bytes of stack compiled for this machine"
    print(f"C: {head['constants']:,} bytes of constants, {head['arena']:,} bytes of arena{stack}")
    for name, count in head["unequal"].items():
        print(f"{name}: {count:,} sums that get another code than in training")


def _range(ends: tuple[float, float] | None) -> str:
    return "float" if ends is None else f"{ends[0]:.3g} .. {ends[1]:.3g}"


def _costs(source: Source) -> list[LayerCost]:
    if source.program is not None:
        return program_costs(source.program)
    if source.model is not None:
        return model_costs(source.model, example_of(source))
    if source.kind.startswith("tflite"):
        return tflite_costs(source.path)
    if source.kind == "c":
        return c_costs(source.path)
    return packed_costs(source.path)


def _has_layers(source: Source) -> bool:
    """Whether it is known what each layer holds: not in files which are only an engine's graph."""
    readable = source.program is not None or source.model is not None
    return readable or not source.loaded.engines or source.kind in ("tflite", "tflite4", "c")


def _print_file(settings: Inspect, source: Source) -> None:
    """Print what a file says as a whole: its ends, widths, bytes and stored numbers."""
    loaded, form = source.loaded, FORMATS[source.kind]
    sizes = {file.name: file.stat().st_size for file in form.files(source.path)}
    numbers = form.stored(source.path)
    ends = {name: list(shape) for name, shape in loaded.inputs.items()}
    facts = {
        "source": str(settings.source),
        "format": source.kind,
        "engines": list(loaded.engines),
        "bytes": sizes,
        "inputs": ends,
        "outputs": list(loaded.outputs),
        "act_bits": list(loaded.act_bits),
        "uint8_images": loaded.preprocessing is not None,
        "numbers": numbers,
        "classes": loaded.classes,
    }
    shapes = [f"{name} ({', '.join('any' if n is None else str(n) for n in shape)})" for name, shape in ends.items()]
    print(f"a file of --to {source.kind}, which {' or '.join(loaded.engines)} runs")
    print("bytes: " + ", ".join(f"{name} {size:,}" for name, size in sizes.items()))
    print(f"inputs: {', '.join(shapes)}{', uint8 images' if loaded.preprocessing is not None else ''}")
    print(f"outputs: {', '.join(loaded.outputs)}")
    if loaded.act_bits:
        print(f"activations: {', '.join(map(str, loaded.act_bits))} bits")
    print("numbers stored: " + ", ".join(f"{count:,} {kind}" for kind, count in numbers.items()))
    if loaded.classes is not None:
        print(f"classes: {len(loaded.classes)}: {some_of(loaded.classes, separator='; ')}")
    print("layer by layer: inspect the run, or its file of --to packed, onnx, tflite or c")
    write_json(settings.json, facts)
