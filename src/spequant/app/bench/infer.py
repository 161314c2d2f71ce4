"""Inference: a low-bit network against the same network in fp32, in each engine."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from spequant import models
from spequant.app.bench.static import STATIC, static_int8
from spequant.app.bench.subjects import check_name, checked_logits
from spequant.app.bench.workers import seconds_of
from spequant.app.commands.bench import Clock, Infer
from spequant.app.runs.evaluation import source_at_bits
from spequant.app.runs.reporter import Quiet, Reporter
from spequant.app.runs.samples import Samples
from spequant.app.runs.sources import Source, example_of, float_network, open_source
from spequant.calibration.ranges import calibrate
from spequant.deploy import Program, align_ranges, at_width, integer_graph, lower, mixed_graph
from spequant.deploy.engines import ENGINES, versions
from spequant.deploy.float_program import float_program
from spequant.deploy.formats.openvino import openvino_graph
from spequant.deploy.formats.tflite import tflite_graph
from spequant.deploy.processor import instruction_sets
from spequant.deploy.torch_graph import float_graph
from spequant.extras import needs
from spequant.models.named import BUILDERS
from spequant.preparation.placement import prepare, unprepare
from spequant.quantizers import PACT, SAWB

OPENVINO, LITERT = "openvino", "litert"
ONNX_ENGINES = ("onnxruntime", OPENVINO)
Variant = TypeVar("Variant")


@dataclass(frozen=True)
class OnnxNetwork:
    """A network as ONNX, and for LiteRT as .tflite.

    Args:
        float_graph: of the float network; None: no engine asks for ONNX.
        graphs: {name: graph} of the low-bit network, one per width.
        inputs: {name: tensor}, a batch.
        openvino: {name: graph} in the form of --to openvino, of those that have one.
        static: whether the float network is timed at 8 bits by onnxruntime's own quantization, too.
        tflite: {name: file's bytes}, the float network first; empty: it has no such form, or LiteRT is not asked for.
        pixels: the names among these of files that take uint8 images.
    """

    float_graph: Any
    graphs: dict[str, Any]
    inputs: Mapping[str, Tensor]
    openvino: Mapping[str, Any] = field(default_factory=dict)
    static: bool = False
    tflite: Mapping[str, bytes] = field(default_factory=dict)
    pixels: tuple[str, ...] = ()


@dataclass(frozen=True)
class Entry:
    """One graph in one engine, ready to run.

    Args:
        name: of the graph.
        engine: its name.
        size: of the graph's file, bytes.
        call: runs the graph once.
        times: of each round, milliseconds.
    """

    name: str
    engine: str
    size: int
    call: Callable[[], object]
    times: list[float] = field(default_factory=list)


def bench_infer(settings: Infer, reporter: Reporter | None = None) -> list[dict[str, Any]]:
    """Measure inference.

    Args:
        settings: what is measured.
        reporter: is told the phases; None: nobody is.

    Returns:
        Rows, one per graph and engine: `name` ("fp32", "static int8": that network by onnxruntime's own quantization,
        and the low-bit ones), `engine`, `version`, `ms`, `times_faster_than_fp32`, `file_bytes`, `batch`, `threads`,
        `clock`, `instruction_sets`.

    Raises:
        ValueError: a setting is out of range, or the source holds no network.
    """
    for name in ("size", "length", "batch", "threads", "rounds"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")
    torch.manual_seed(0)
    reporter = reporter or Quiet()
    reporter.phase("making graphs")
    network = _onnx_network(settings)
    with tempfile.TemporaryDirectory() as folder:
        entries = _entries(settings, network, Path(folder))
        for entry in entries:
            entry.call()
        reporter.phase(f"timing, {settings.rounds} rounds")
        for _ in reporter.track(range(settings.rounds), settings.rounds):
            for entry in entries:
                entry.times.append(1000 * _seconds(entry.call, settings.clock))
    medians = {(e.name, e.engine): statistics.median(e.times) for e in entries}
    installed = versions()
    shared = {name: getattr(settings, name) for name in ("batch", "threads", "clock")}
    shared["instruction_sets"] = instruction_sets()
    return [
        {
            "name": e.name,
            "engine": e.engine,
            "version": installed.get(e.engine),
            "ms": round(medians[e.name, e.engine], 3),
            "times_faster_than_fp32": round(medians["fp32", e.engine] / medians[e.name, e.engine], 3),
            "file_bytes": e.size,
            **shared,
        }
        for e in entries
    ]


def _seconds(call: Callable[[], object], clock: Clock) -> float:
    if clock == "wall":
        return seconds_of(call)
    begun = time.process_time()
    call()
    return time.process_time() - begun


def _onnx_network(settings: Infer) -> OnnxNetwork:
    if settings.source is None:
        if settings.act_bits:
            raise ValueError(f"act_bits is {settings.act_bits!r}, which is for a run or a file; expected --bits")
        return _random(settings)
    if settings.bits:
        raise ValueError(f"bits is {settings.bits!r}, which is for a network without a source; expected --act-bits")
    source = open_source(settings.source, settings.root, arrays=settings.arrays)
    if source.kind.startswith("tflite"):
        return _tflite_file(settings, source)
    if source.model is None and not source.loaded.engines and settings.network is not None:
        source = open_source(settings.source, settings.root, network=settings.network, arrays=settings.arrays)
    if source.program is None and source.model is None:
        if not source.loaded.engines:
            raise source.network_needed("time it")
        raise ValueError(
            f"{source.path} is a file of --to {source.kind}; expected a run, a packed file, integer ONNX or .tflite"
        )
    tokens = source.of_questions or (isinstance(source.tested, Samples) and source.tested.named)
    return _tokens(settings, source) if tokens else _images(settings, source)


def _random(settings: Infer) -> OnnxNetwork:
    """Networks with random weights, calibrated on random images."""
    name = settings.network or "resnet18"
    check_name(name, tuple(BUILDERS))
    network = BUILDERS[name]() if name in BUILDERS else float_network(name)
    x = torch.randn(settings.batch, 3, settings.size, settings.size)
    checked_logits(network, name, x)
    programs = {}
    for bits in settings.bits or (2,):
        model = prepare(network, weight=SAWB(bits), act=PACT(bits))
        calibrate(model, [torch.randn(4, *x.shape[1:])], samples=4)
        align_ranges(model, x[:1])  # as recipes do
        programs[f"W{bits}A{bits}"] = lower(model, x[:1])
    return _of_images(settings, network, x, programs)


def _tflite_file(settings: Infer, source: Source) -> OnnxNetwork:
    """A file of --to tflite, next to its float network, with random weights, in fp32 and at 8 bits."""
    if set(_engines(settings, source)) != {LITERT} or settings.act_bits:
        what = f"act_bits is {settings.act_bits!r}" if settings.act_bits else f"engines is {settings.engines!r}"
        raise ValueError(f"{what}; {source.path} is timed as it is, in {LITERT}")
    assert source.loaded.shape is not None
    x = torch.randn(settings.batch, *(size or 1 for size in source.loaded.shape))
    model = prepare(_float_network(settings, source), weight=SAWB(8), act=PACT(8))
    calibrate(model, [torch.randn(4, *x.shape[1:])], samples=4)
    eight, name = lower(model, x[:1]), f"A{source.act_bits}"
    files = _tflite_files({"W8A8": eight}) | {name: source.path.read_bytes()}
    pixels = () if source.loaded.preprocessing is None else (name,)
    return OnnxNetwork(None, {}, {"input": x}, tflite=files, pixels=pixels)


def _tokens(settings: Infer, source: Source) -> OnnxNetwork:
    """The network of a source for questions, on windows without padding, all of one token; or that of samples whose
    inputs have names, on the first of them."""
    assert source.model is not None  # an integer graph is of images
    if settings.length is not None and not source.of_questions:
        raise ValueError(f"length is {settings.length}, which is for questions; arrays have a length themselves")
    example = example_of(source, settings.length)
    assert isinstance(example, dict)
    inputs = {name: x.repeat(settings.batch, *[1] * (x.dim() - 1)) for name, x in example.items()}
    try:
        with torch.no_grad():
            source.model(**example)
    except (IndexError, RuntimeError) as error:
        what = f"length is {settings.length}" if source.of_questions else f"arrays is {settings.arrays}"
        raise ValueError(f"{what}: the network does not run on it ({error})") from error
    graphs = _at_widths(settings, source, lambda model: mixed_graph(model, inputs).graph)
    return OnnxNetwork(float_graph(unprepare(source.model), inputs), graphs, inputs)


def _images(settings: Infer, source: Source) -> OnnxNetwork:
    """The network of a source for images."""
    example = example_of(source)
    assert isinstance(example, Tensor)  # of questions it has names
    x = torch.randn(settings.batch, *example.shape[1:])
    if source.program is not None:
        widths = {f"A{bits}": at_width(source.program, bits, source.trained) for bits in settings.act_bits}
        programs = widths or {f"A{source.act_bits}": source.program}
        return _of_images(settings, _float_network(settings, source), x, programs)
    assert source.model is not None
    programs = _at_widths(settings, source, lambda model: lower(model, x[:1]))
    return _of_images(settings, unprepare(source.model), x, programs)


def _float_network(settings: Infer, source: Source) -> nn.Module:
    """The float network, with random weights, that an integer graph is timed against."""
    if settings.network is not None:
        return float_network(settings.network)
    if source.recipe is None or source.shape is None:
        raise ValueError(
            f"{source.path} does not say what network it holds, as files that were made in Python; give --network "
            "package.module:Object or file.py:Object, what makes the float network that it is timed against"
        )
    name, (channels, *_, width) = source.recipe.network.name, source.shape
    classes = source.loaded.about["classes"] if source.program is None else source.program.output.shape[1]
    return models.make_network(name, classes=classes, in_channels=channels, size=width)


def _at_widths(settings: Infer, source: Source, form: Callable[[nn.Module], Variant]) -> dict[str, Variant]:
    """{name: form of the model}, one per width of the settings; none: as trained."""
    assert source.model is not None
    forms, weight = {}, "" if source.recipe is None else f"W{source.recipe.quant.weight_bits}"
    for bits in settings.act_bits or (None,):
        with source_at_bits(source, bits):
            forms[f"{weight}A{bits or source.trained or source.act_bits}"] = form(source.model)
    return forms


def _of_images(settings: Infer, network: nn.Module, x: Tensor, programs: Mapping[str, Program]) -> OnnxNetwork:
    engines = _engines(settings)
    tflite = _tflite_files(programs) if LITERT in engines else {}
    if set(engines) == {LITERT}:
        return OnnxNetwork(None, {}, {"input": x}, tflite=tflite)
    graphs = {name: _of_batch(integer_graph(program), len(x)) for name, program in programs.items()}
    openvino = {name: _of_batch(openvino_graph(p), len(x)) for name, p in programs.items() if OPENVINO in engines}
    return OnnxNetwork(float_onnx(network.eval(), x), graphs, {"input": x}, openvino, static=True, tflite=tflite)


def _of_batch(graph: Any, batch: int) -> Any:
    """`graph` for `batch` samples, as the float one is; in place."""
    for end in (*graph.graph.input, *graph.graph.output):
        end.type.tensor_type.shape.dim[0].dim_value = batch
    return graph


def _tflite_files(programs: Mapping[str, Program]) -> dict[str, bytes]:
    """Of the float network that the programs are of, and of these."""
    first = next(iter(programs.values()))
    every = {"fp32": float_program(first), **programs}
    return {name: tflite_graph(program).data for name, program in every.items()}


def _engines(settings: Infer, source: Source | None = None) -> tuple[str, ...]:
    usual = (LITERT,) if source is not None and source.kind.startswith("tflite") else ONNX_ENGINES
    return settings.engines or usual


def _entries(settings: Infer, network: OnnxNetwork, folder: Path) -> list[Entry]:
    feed = {name: x.numpy() for name, x in network.inputs.items()}
    floats = {}
    if network.float_graph is not None:
        floats["fp32"] = _saved(network.float_graph, folder / "fp32.onnx")
    if floats and network.static:
        floats[STATIC] = static_int8(floats["fp32"], feed)
    entries = []
    for engine in settings.engines or ONNX_ENGINES:
        graphs = {**network.graphs, **(network.openvino if engine == OPENVINO else {})}
        files = {name: _saved(graph, folder / f"{name}.{engine}.onnx") for name, graph in graphs.items()}
        for name, path in {**floats, **files}.items() if engine != LITERT else ():
            run = ENGINES[engine](path, settings.threads)
            entries.append(Entry(name, engine, path.stat().st_size, partial(run, feed)))
    for name, data in network.tflite.items():
        inputs = {end: (60 * x + 128).clip(0, 255).astype(np.uint8) for end, x in feed.items()}
        run = ENGINES[LITERT](data, settings.threads)
        entries.append(Entry(name, LITERT, len(data), partial(run, inputs if name in network.pixels else feed)))
    return entries


def _saved(graph: Any, path: Path) -> Path:
    needs("onnx", "deploy").save(graph, path)
    return path


def float_onnx(network: nn.Module, x: Tensor) -> Any:
    """The ONNX graph of a float network by torch's own exporter; its input is named "input"."""
    needs("onnxscript", "deploy")
    exported = torch.onnx.export(network, (x,), input_names=["input"], dynamo=True, verbose=False)
    assert exported is not None  # it is with `dynamo`
    return exported.model_proto
