"""OpenVINO's own files, .xml with .bin next to it: written together, sealed together. Converted from integer ONNX, of a
form of its own (`OpenVinoGraph`)."""

import json
import math
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from spequant.deploy.alignment import finer
from spequant.deploy.formats.format import Draft, ProgramFormat
from spequant.deploy.formats.onnx import WRITERS, IntegerGraph, code_graphs, integer_graph
from spequant.deploy.grids import Grid
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.onnx_file import KEY
from spequant.deploy.operations import Add, Operation, Weighted
from spequant.deploy.program import Program
from spequant.deploy.seal import OPEN, check_seal, sealed
from spequant.extras import needs
from spequant.files import placed_together


class OpenVinoGraph(IntegerGraph):
    """As OpenVINO fuses it: a layer, an addition behind it and its rounding are one kernel (measured, docs/deploy.md).

    - Few codes are clipped in float, before they are rounded: that becomes one FakeQuantize of these ends.
    - An addend, too, is rounded in that kernel only if something stands between the layer and its FakeQuantize: the
      CPU plugin drops the rounding of one that is first behind a layer and has a sum and a FakeQuantize behind it.
    - An average pooling that does not count its padding is computed in float: on codes with a zero point OpenVINO
      2026.4 gives others, by several (`tests/whole/test_everyday_forms.py`).
    """

    def __init__(self, once: bool = False) -> None:
        super().__init__(once)
        self.addends: set[Operation] = set()

    @classmethod
    def pairs(cls, program: Program) -> dict[Operation, Operation]:
        return finer(program)

    def emit_program(self, program: Program, taps: Sequence[Operation] = ()) -> None:
        self.addends = {i for op in program.ops if isinstance(op, Add) for i in op.inputs}
        super().emit_program(program, taps)

    def result(self, value: str, op: Operation) -> str:
        return super().result(self._apart(value, op) if op in self.addends and isinstance(op, Weighted) else value, op)

    def pooled(self, op: Operation) -> str:
        return self._apart(super().pooled(op), op)

    def _apart(self, value: str, op: Operation) -> str:
        """`value` behind a node that does nothing, which no optimiser knows."""
        return self.node("LeakyRelu", [value], op.name, alpha=1.0)

    def rounded(self, value: str, grid: Grid, name: str, step: float | None = None) -> str:
        if (grid.low + grid.zero, grid.high + grid.zero) != (0, 255):
            unit = np.float32(grid.step if step is None else step)
            ends = [self.constant(unit * np.float32(end), f"{name}.end") for end in (grid.low, grid.high)]
            value = self.node("Clip", [value, *ends], name)
        return self.node("QuantizeLinear", [value, *self.scale(grid, name, step)], name)

    def counted(self, op: Operation, name: str) -> str:
        """Floor changes no whole number; a FakeQuantize behind an operation is fused with it, one behind codes is a
        kernel of its own between two that change the layout."""
        return self.node("Floor", [self.numbers(op, name)], name)


def openvino_graph(program: Program, *, preprocessing: Preprocessing | None = None) -> Any:
    """As `integer_graph`, in the form that OpenVINO fuses."""
    return integer_graph(program, preprocessing=preprocessing, form=OpenVinoGraph)


@contextmanager
def openvino_placed(model: Any, path: Path, about: Mapping[str, Any]) -> Iterator[Path]:
    """Inside, the .xml of what `integer_graph` made, its .bin next to it, under a temporary name; at the end both take
    the place of `path` and its .bin, after an exception nothing of them is left. Errors as `write_openvino`'s."""
    if path.suffix.lower() != ".xml":
        raise ValueError(f"path is {str(path)!r}; expected one that ends in .xml: OpenVINO writes .xml and .bin")
    with placed_together(path, path.with_suffix(".bin")) as (xml, bin):  # the seal tells an .xml from another .bin
        openvino, plain = needs("openvino", "deploy"), type(model)()
        plain.CopyFrom(model)
        plain.ClearField("metadata_props")  # OpenVINO would keep them, the other seal too
        head = json.loads({p.key: p.value for p in model.metadata_props}[KEY])
        head.pop("program")
        converted = openvino.Core().read_model(plain.SerializeToString())
        for key, value in {"about": dict(about), "head": head}.items():
            converted.set_rt_info(json.dumps(value), ["spequant", key])
        converted.set_rt_info(OPEN, ["spequant", "seal"])
        with tempfile.TemporaryDirectory(dir=xml.parent) as folder:
            temporary = Path(folder) / f"{path.stem}.xml"  # OpenVINO asks for small letters
            weights = temporary.with_suffix(".bin")
            openvino.save_model(converted, temporary, compress_to_fp16=False)
            temporary.write_bytes(sealed(temporary.read_bytes(), weights.read_bytes()))
            yield temporary
            shutil.move(weights, bin)
            shutil.move(temporary, xml)


def write_openvino(model: Any, path: str | Path, about: Mapping[str, Any]) -> None:
    """Convert what `integer_graph` made and write it to `path`, which ends in .xml, and its .bin.

    Raises:
        ValueError: another ending.
        OSError: as `spequant.files.placed`; nor may one of the two be a pipe or a device.
    """
    with openvino_placed(model, Path(path), about):
        pass


def read_openvino(path: str | Path) -> dict[str, Any]:
    """What `write_openvino` was given as `about`. FileNotFoundError. ValueError: changed, damaged, or not ours."""
    return _read(Path(path))[1]


def _read(path: Path) -> tuple[Any, dict[str, Any]]:
    """(OpenVINO's model, about)"""
    for file in (path, path.with_suffix(".bin")):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; expected OpenVINO's .xml with its .bin next to it")
    check_seal(path, path.read_bytes(), path.with_suffix(".bin").read_bytes())
    model = needs("openvino", "deploy").Core().read_model(path)
    try:
        return model, json.loads(model.get_rt_info(["spequant", "about"]).astype(str))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not say what it is of ({error}); export it anew") from error


class OpenVino(ProgramFormat):
    """OpenVINO's .xml and .bin."""

    name, suffix, extension = "openvino", ".xml", ".xml"
    help = "model.xml and model.bin"
    engines = ("openvino",)
    runs_in = "OpenVINO"
    preprocessing = True
    graphs = code_graphs(OpenVinoGraph)
    writers = WRITERS  # of the integer ONNX that it is converted from

    def files(self, path: Path) -> tuple[Path, ...]:
        return path, path.with_suffix(".bin")

    def content(self, program: Program, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None) -> Any:
        return openvino_graph(program, preprocessing=preprocessing), dict(about or {})

    def placed(self, draft: Draft, path: Path) -> Any:
        graph, about = draft.content
        return openvino_placed(graph, path, about)

    def stored(self, path: Path) -> dict[str, int]:
        counts: Counter[str] = Counter()
        for op in _read(path)[0].get_ops():
            if op.get_type_name() == "Constant":
                counts[op.get_element_type().to_dtype().name] += math.prod(op.get_output_shape(0))
        return dict(counts)

    def open(self, path: Path, network: nn.Module | None) -> Loaded:
        model, about = _read(path)
        head = about  # files of before say less
        if model.has_rt_info(["spequant", "head"]):
            head = json.loads(model.get_rt_info(["spequant", "head"]).astype(str))
        ends = {end.get_any_name(): _shape(end) for end in model.inputs}
        outputs = tuple(end.get_any_name() for end in model.outputs)
        values, bits = head.get("preprocessing"), head.get("act_bits")
        return Loaded(
            path,
            self.name,
            self.engines,
            about=about,
            inputs=ends,
            outputs=outputs,
            act_bits=tuple(bits) if isinstance(bits, list) else (),
            preprocessing=None if values is None else (values[0], values[1]),
        )


def _shape(end: Any) -> tuple[int | None, ...]:
    return tuple(d.get_length() if d.is_static else None for d in end.partial_shape)
