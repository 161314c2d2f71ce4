"""The integer program as C, for machines without an engine: weights and activations packed below a byte."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import nn

from spequant.deploy.c.emitter import ON_A_GRID, CEmitter, CWriters
from spequant.deploy.c.engine import HOST, bundle, compiler, stack_size
from spequant.deploy.c.layers import add, mul, weighted
from spequant.deploy.c.manifest import MANIFEST, identifier, read_manifest, renamed
from spequant.deploy.c.moves import concat, cut, given_out, pad, pixel_shuffle, repeat, reshape, transpose
from spequant.deploy.c.pools import amax, avg_pool, clamp, function, max_pool, mean, quantize_call
from spequant.deploy.c.project import Project, project, write_project
from spequant.deploy.c.tensors import Tensor
from spequant.deploy.code_graphs import CodedGraph, CodeGraphs
from spequant.deploy.formats.format import Draft, ProgramFormat
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.operations import (
    Add,
    Affine,
    Amax,
    AvgPool,
    Clamp,
    Concat,
    Curve,
    Divide,
    Flatten,
    FloatLayer,
    Function,
    Input,
    MaxPool,
    Mean,
    Mul,
    Operation,
    Pad,
    PixelShuffle,
    PRelu,
    Quantize,
    Repeat,
    Reshape,
    Sigmoid,
    Slice,
    Subtract,
    Transpose,
    Weighted,
)
from spequant.deploy.program import Program
from spequant.files import placed_folder


def _no_tensor(e: CEmitter, op: Operation) -> Any:
    raise ValueError(f"{op.name}: the network's input is read in float, which the format c has not; {ON_A_GRID}")


WRITERS: CWriters = MappingProxyType(
    {
        Input: _no_tensor,
        Quantize: quantize_call,
        Weighted: weighted,
        Add: add,
        Mul: mul,
        Function: function,
        Clamp: clamp,
        Mean: mean,
        AvgPool: avg_pool,
        MaxPool: max_pool,
        Amax: amax,
        Flatten: reshape,
        Reshape: reshape,
        Transpose: transpose,
        PixelShuffle: pixel_shuffle,
        Slice: cut,
        Pad: pad,
        Repeat: repeat,
        Concat: concat,
    }
)


def c_project(
    program: Program, *, preprocessing: Preprocessing | None = None, about: Mapping[str, Any] | None = None
) -> Project:
    """The C program of `program`: one function, of one image.

    Args:
        program: what `lower` makes.
        preprocessing: (mean, std) per channel, of images scaled to [0, 1]: the input is then uint8 images.
        about: JSON that the manifest keeps.

    Raises:
        ValueError: names what is computed in float, or what has no form in C.
    """
    e = CEmitter(WRITERS, program, None if preprocessing is None else _pixels(program, preprocessing))
    for name, op in program.outputs.items():
        e.outputs[name] = given_out(e, name, op)
    e.drop_unread()
    return project(e, preprocessing, about)


def _pixels(program: Program, preprocessing: Preprocessing) -> np.ndarray:
    """What the 256 values of a pixel are to the network, fp32 (channels, 256), as `inputs.as_batches` computes it."""
    values = torch.arange(256, dtype=torch.uint8).view(1, 256).expand(program.input.shape[1], 256)
    mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1) for v in preprocessing)
    return ((values.float() / 255 - mean) / std).numpy()


def c_graph(
    program: Program, *, preprocessing: Preprocessing | None = None, taps: Sequence[Operation] = ()
) -> CodedGraph:
    """The program for `engine.cc`, with the codes of all operations that have a tensor of their own."""
    sources = c_project(program, preprocessing=preprocessing)
    files = {**sources.files("net"), HOST: renamed(sources.host, "net")}
    shapes = [op.shape[1:] for op in sources.taps] if taps else []
    return CodedGraph(bundle(files, sources.head, shapes), sources.zero, np.dtype(np.uint8), sources.taps)


class _Trying(CEmitter):
    """refusals: (name, why not) of each operation that cannot be written, with a tensor of its form in its place."""

    def __init__(self, program: Program) -> None:
        self.refusals: list[tuple[str, str]] = []
        super().__init__(WRITERS, program)

    def value(self, op: Operation) -> Tensor:
        try:
            return super().value(op)
        except ValueError as error:
            self.refusals.append((op.name, str(error).removeprefix(f"{op.name}: ")))
            return self.tensors.setdefault(op, self.new(op))


class C(ProgramFormat):
    """A folder of C files."""

    name, suffix, extension = "c", ".c", None
    help = "a folder of C99, weights and activations packed at their bits"
    engines = ("cc",)
    runs_in = "any machine with a C compiler"
    preprocessing = True
    folder = whole_numbers = True
    images = 512
    graphs = CodeGraphs(c_graph, None)
    writers = WRITERS
    refused = (Affine, Curve, Divide, FloatLayer, PRelu, Sigmoid, Subtract)

    def destinations(self, path: Path) -> tuple[Path, ...]:
        """FileExistsError: a folder of other files, which would be lost."""
        if path.is_dir() and any(path.iterdir()) and not self.recognised(path):
            raise FileExistsError(f"{path} is a folder with other files; give the name of a new one")
        return super().destinations(path)

    def draft(
        self, model: nn.Module, example: Any, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None
    ) -> Draft:
        """FileNotFoundError: there is no C compiler."""
        compiler()
        writing = super().draft(model, example, preprocessing, about)
        return Draft(writing.content, writing.program, [], [], 1, writing.content.flash)

    def content(self, program: Program, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None) -> Any:
        return c_project(program, preprocessing=preprocessing, about=about)

    def faults(self, program: Program) -> list[tuple[str, str]]:
        return _Trying(program).refusals

    @contextmanager
    def placed(self, draft: Draft, path: Path) -> Iterator[Path]:
        with placed_folder(path) as folder:
            name = identifier(path)
            write_project(folder, name, draft.content, {})
            write_project(folder, name, draft.content, {"stack": stack_size(folder, name)})
            yield folder

    def recognised(self, path: Path) -> bool:
        return (path / MANIFEST).is_file()

    def open(self, path: Path, network: nn.Module | None) -> Loaded:
        head = read_manifest(path)
        values = head["preprocessing"]
        return Loaded(
            path,
            self.name,
            self.engines,
            about=head["about"],
            inputs={"input": (None, *head["input"]["shape"])},
            outputs=tuple(o["name"] for o in head["outputs"]),
            act_bits=tuple(head["act_bits"]),
            preprocessing=None if values is None else (values[0], values[1]),
        )
