"""Inference: a low-bit network against the same network in fp32, in each engine."""

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tyro.conf import Positional

from spequant import models
from spequant.calibrate import calibrate
from spequant.export import Program, at_width, integer_graph, lower, write_onnx
from spequant.export.engines import ENGINES, Run, instruction_sets, versions
from spequant.export.extra import needs
from spequant.models.named import OWN
from spequant.prepare import prepare, unprepare
from spequant.quantizers import PACT, SAWB
from spequant.recipes.evaluation import at_bits
from spequant.recipes.sources import open_source

EngineName = Literal["onnxruntime", "openvino"]


@dataclass(frozen=True)
class Infer:
    """Time inference of a run, a packed file or an integer ONNX file; without one, of a network with random weights.

    Each round runs every graph once; the median over the rounds is printed.
    """

    source: Positional[Path | None] = None
    """a run's folder, a packed file or one of --to onnx"""
    network: str = "resnet18"
    """where no source is given: a network of the recipes"""
    image: int = 224
    """its images' height and width"""
    bits: tuple[int, ...] = ()
    """widths of weights and activations of that network, none: 2; of a source: of its activations, none: as trained"""
    engines: tuple[EngineName, ...] = ("onnxruntime", "openvino")
    batch: int = 1
    threads: int = 1
    rounds: int = 30
    root: Path | None = None
    """folder of the data set, for a run; None: the recipe's, or SPEQUANT_DATA"""
    json: Path | None = None
    """rows as JSON"""


@dataclass
class Entry:
    """One graph in one engine, ready to run."""

    name: str
    engine: str
    size: int
    call: Callable[[], object]
    times: list[float]


def bench_infer(settings: Infer) -> list[dict[str, Any]]:
    """A row for each graph and engine: name, engine, version, ms, times_faster_than_fp32, file_bytes, batch, threads,
    instruction_sets. ValueError: a setting out of range, a source that holds no network."""
    for name in ("image", "batch", "threads", "rounds"):
        if getattr(settings, name) < 1:
            raise ValueError(f"{name} is {getattr(settings, name)}; expected 1 or more")
    torch.manual_seed(0)
    network, programs = _subjects(settings)
    with tempfile.TemporaryDirectory() as folder:
        entries = _entries(settings, network, programs, Path(folder))
        for entry in entries:
            entry.call()
        for _ in range(settings.rounds):
            for entry in entries:
                begun = time.perf_counter()
                entry.call()
                entry.times.append(1000 * (time.perf_counter() - begun))
    floats = {e.engine: statistics.median(e.times) for e in entries if e.name == "fp32"}
    known, here = versions(), instruction_sets()
    return [
        {
            "name": e.name,
            "engine": e.engine,
            "version": known.get(e.engine),
            "ms": round(statistics.median(e.times), 3),
            "times_faster_than_fp32": round(floats[e.engine] / statistics.median(e.times), 3),
            "file_bytes": e.size,
            "batch": settings.batch,
            "threads": settings.threads,
            "instruction_sets": here,
        }
        for e in entries
    ]


def _subjects(settings: Infer) -> tuple[tuple[nn.Module, Tensor], dict[str, Program]]:
    """((float network, an input), {name: program})."""
    if settings.source is None:
        return _random(settings)
    source = open_source(settings.source, settings.root)
    if source.of_questions:
        raise ValueError(f"{source.path} is of a network for questions, which has no integer graph; expected images'")
    shape = (settings.batch, *source.shape)
    x = torch.randn(shape)
    if source.program is not None:
        name, classes = source.recipe.network.name, source.program.output.shape[1]
        float_network = models.make_network(name, classes=classes, in_channels=source.shape[0], size=source.shape[-1])
        trained = source.recipe.quant.act_bits
        widths = {f"A{bits}": at_width(source.program, bits, trained) for bits in settings.bits}
        return (float_network.eval(), x), widths or {f"A{source.act_bits}": source.program}
    if source.model is None:
        raise ValueError(
            f"{source.path} is a file of --to {source.kind}; expected a run, a packed file or integer ONNX"
        )
    quant, programs = source.recipe.quant, {}
    for bits in settings.bits or (None,):
        with at_bits(source, bits):
            programs[f"W{quant.weight_bits}A{bits or quant.act_bits}"] = lower(source.model, x[:1])
    return (unprepare(source.model).eval(), x), programs


def _random(settings: Infer) -> tuple[tuple[nn.Module, Tensor], dict[str, Program]]:
    if settings.network not in OWN:
        raise ValueError(f"network is {settings.network!r}; expected one of {', '.join(OWN)}")
    network = getattr(models, settings.network)()
    x = torch.randn(settings.batch, 3, settings.image, settings.image)
    try:
        network.eval()(x)
    except RuntimeError as error:
        raise ValueError(f"image is {settings.image}: {settings.network} does not run on it ({error})") from error
    programs = {}
    for bits in settings.bits or (2,):
        model = prepare(network, weight=SAWB(bits), act=PACT(bits))
        calibrate(model, [torch.randn(4, *x.shape[1:])], samples=4)
        programs[f"W{bits}A{bits}"] = lower(model, x[:1])
    return (network, x), programs


def _entries(settings: Infer, subject: tuple[nn.Module, Tensor], programs: Any, folder: Path) -> list[Entry]:
    network, x = subject
    files = {"fp32": folder / "fp32.onnx", **{name: folder / f"{name}.onnx" for name in programs}}
    float_onnx(network, x, files["fp32"])
    for name, program in programs.items():
        write_onnx(integer_graph(program), files[name])
    given = x.numpy()
    entries = []
    for engine in settings.engines:
        for name, path in files.items():
            run = ENGINES[engine](path, settings.threads)
            entries.append(Entry(name, engine, path.stat().st_size, _call(run, given), []))
    return entries


def _call(run: Run, given: np.ndarray) -> Callable[[], object]:
    feed = {"input": given}
    return lambda: run(feed)


def float_onnx(network: nn.Module, x: Tensor, path: Path) -> None:
    """The float network by torch's own exporter: input "input"."""
    needs("onnxscript")
    torch.onnx.export(
        network,
        (x,),
        path,
        input_names=["input"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
