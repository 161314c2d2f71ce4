"""Inference: a low-bit network against the same network in fp32, in each engine."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from tyro.conf import Positional

from spequant import models
from spequant.app.runs.evaluation import at_bits
from spequant.app.runs.sources import Source, example_of, float_network, open_source
from spequant.calibration.ranges import calibrate
from spequant.deploy import Program, at_width, integer_graph, lower, mixed_graph
from spequant.deploy.engines import ENGINES, versions
from spequant.deploy.processor import instruction_sets
from spequant.deploy.torch_graph import float_graph
from spequant.extras import needs
from spequant.models.named import BUILDERS
from spequant.preparation.placement import prepare, unprepare
from spequant.quantizers import PACT, SAWB

EngineName = Literal["onnxruntime", "openvino"]
Made = TypeVar("Made")


@dataclass(frozen=True)
class Infer:
    """Time inference of a run, a packed file or an integer ONNX file; without one, of a network with random weights.

    Each round runs every graph once; the median over the rounds is printed. Networks for questions are timed in their
    mixed form (export --to mixed).
    """

    source: Positional[Path | None] = None
    """a run's folder, a packed file or one of --to onnx"""
    network: str | None = None
    """without a source: a network of the recipes, None: resnet18; of a file made in Python: what makes its float
    network, package.module:Object or file.py:Object"""
    data: Path | None = None
    """of a packed file made in Python: an .npz with the array inputs, as its network takes them"""
    image: int = 224
    """its images' height and width"""
    bits: tuple[int, ...] = ()
    """without a source: widths of weights and activations of that network; none: 2"""
    act_bits: tuple[int, ...] = ()
    """widths of the activations that a source was trained with at its recipe's act_bits; none: as trained"""
    engines: tuple[EngineName, ...] = ("onnxruntime", "openvino")
    length: int | None = None
    """tokens of a window, of a source for questions; None: its data.max_length"""
    batch: int = 1
    threads: int = 1
    rounds: int = 30
    root: Path | None = None
    """folder of the data set, for a run; None: the recipe's, or SPEQUANT_DATA"""
    json: Path | None = None
    """rows as JSON"""


@dataclass(frozen=True)
class Subject:
    """One network as ONNX, in float and at some widths; inputs: a batch by name."""

    float_graph: Any
    graphs: dict[str, Any]
    inputs: Mapping[str, Tensor]


@dataclass
class Entry:
    """One graph in one engine, ready to run."""

    name: str
    engine: str
    size: int
    call: Callable[[], object]
    times: list[float]


def bench_infer(settings: Infer) -> list[dict[str, Any]]:
    """One row per graph and engine: name, engine, version, ms, times_faster_than_fp32, file_bytes, batch, threads,
    instruction_sets. ValueError: a setting out of range, a source that holds no network."""
    for name in ("image", "length", "batch", "threads", "rounds"):
        value = getattr(settings, name)
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; expected 1 or more")
    torch.manual_seed(0)
    subject = _subject(settings)
    with tempfile.TemporaryDirectory() as folder:
        entries = _entries(settings, subject, Path(folder))
        for entry in entries:
            entry.call()
        for _ in range(settings.rounds):
            for entry in entries:
                begun = time.perf_counter()
                entry.call()
                entry.times.append(1000 * (time.perf_counter() - begun))
    floats = {e.engine: statistics.median(e.times) for e in entries if e.name == "fp32"}
    installed, here = versions(), instruction_sets()
    return [
        {
            "name": e.name,
            "engine": e.engine,
            "version": installed.get(e.engine),
            "ms": round(statistics.median(e.times), 3),
            "times_faster_than_fp32": round(floats[e.engine] / statistics.median(e.times), 3),
            "file_bytes": e.size,
            "batch": settings.batch,
            "threads": settings.threads,
            "instruction_sets": here,
        }
        for e in entries
    ]


def _subject(settings: Infer) -> Subject:
    if settings.source is None:
        if settings.act_bits:
            raise ValueError(f"act_bits is {settings.act_bits!r}, which is for a run or a file; expected --bits")
        return _random(settings)
    if settings.bits:
        raise ValueError(f"bits is {settings.bits!r}, which is for a network without a source; expected --act-bits")
    source = open_source(settings.source, settings.root, data=settings.data)
    if source.model is None and not source.loaded.engines and settings.network is not None:
        source = open_source(settings.source, settings.root, network=settings.network, data=settings.data)
    if source.program is None and source.model is None:
        if not source.loaded.engines:
            raise source.network_needed("time it")
        raise ValueError(
            f"{source.path} is a file of --to {source.kind}; expected a run, a packed file or integer ONNX"
        )
    return _questions(settings, source) if source.of_questions else _images(settings, source)


def _questions(settings: Infer, source: Source) -> Subject:
    """Windows without padding, all of one token."""
    assert source.model is not None  # an integer graph is of images
    example = example_of(source, settings.length)
    assert isinstance(example, dict)
    inputs = {name: x.repeat(settings.batch, 1) for name, x in example.items()}
    try:
        with torch.no_grad():
            source.model(**example)
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"length is {settings.length}: the network does not run on it ({error})") from error
    graphs = _at_widths(settings, source, lambda model: mixed_graph(model, inputs).graph)
    return Subject(float_graph(unprepare(source.model), inputs), graphs, inputs)


def _images(settings: Infer, source: Source) -> Subject:
    example = example_of(source)
    assert isinstance(example, Tensor)  # of questions it has names
    x = torch.randn(settings.batch, *example.shape[1:])
    if source.program is not None:
        network = _float_network(settings, source)
        widths = {f"A{bits}": at_width(source.program, bits, source.trained) for bits in settings.act_bits}
        return _of_images(network, x, widths or {f"A{source.act_bits}": source.program})
    assert source.model is not None
    programs = _at_widths(settings, source, lambda model: lower(model, x[:1]))
    return _of_images(unprepare(source.model), x, programs)


def _float_network(settings: Infer, source: Source) -> nn.Module:
    """What an integer graph is timed against, with random weights."""
    if settings.network is not None:
        return float_network(settings.network)
    if source.recipe is None or source.shape is None or source.program is None:
        raise ValueError(
            f"{source.path} does not say what network it holds, as files that were made in Python; give --network "
            "package.module:Object or file.py:Object, what makes the float network that it is timed against"
        )
    name, classes, (channels, *_, width) = source.recipe.network.name, source.program.output.shape[1], source.shape
    return models.make_network(name, classes=classes, in_channels=channels, size=width)


def _at_widths(settings: Infer, source: Source, form: Callable[[nn.Module], Made]) -> dict[str, Made]:
    """{name: form of the model} for each width that is asked for; none: as trained."""
    assert source.model is not None
    forms, weight = {}, "" if source.recipe is None else f"W{source.recipe.quant.weight_bits}"
    for bits in settings.act_bits or (None,):
        with at_bits(source, bits):
            forms[f"{weight}A{bits or source.trained or source.act_bits}"] = form(source.model)
    return forms


def _random(settings: Infer) -> Subject:
    name = settings.network or "resnet18"
    if name not in BUILDERS:
        raise ValueError(f"network is {name!r}; expected one of {', '.join(BUILDERS)}")
    network = getattr(models, name)()
    x = torch.randn(settings.batch, 3, settings.image, settings.image)
    try:
        network.eval()(x)
    except RuntimeError as error:
        raise ValueError(f"image is {settings.image}: {name} does not run on it ({error})") from error
    programs = {}
    for bits in settings.bits or (2,):
        model = prepare(network, weight=SAWB(bits), act=PACT(bits))
        calibrate(model, [torch.randn(4, *x.shape[1:])], samples=4)
        programs[f"W{bits}A{bits}"] = lower(model, x[:1])
    return _of_images(network, x, programs)


def _of_images(network: nn.Module, x: Tensor, programs: Mapping[str, Program]) -> Subject:
    graphs = {name: integer_graph(program) for name, program in programs.items()}
    return Subject(float_onnx(network.eval(), x), graphs, {"input": x})


def _entries(settings: Infer, subject: Subject, folder: Path) -> list[Entry]:
    files = {}
    for name, graph in {"fp32": subject.float_graph, **subject.graphs}.items():
        files[name] = folder / f"{name}.onnx"
        needs("onnx", "deploy").save(graph, files[name])
    feed = {name: x.numpy() for name, x in subject.inputs.items()}
    entries = []
    for engine in settings.engines:
        for name, path in files.items():
            run = ENGINES[engine](path, settings.threads)
            entries.append(Entry(name, engine, path.stat().st_size, partial(run, feed), []))
    return entries


def float_onnx(network: nn.Module, x: Tensor) -> Any:
    """The float network by torch's own exporter: input "input"."""
    needs("onnxscript", "deploy")
    exported = torch.onnx.export(network, (x,), input_names=["input"], dynamo=True, verbose=False)
    assert exported is not None  # it is with `dynamo`
    return exported.model_proto
