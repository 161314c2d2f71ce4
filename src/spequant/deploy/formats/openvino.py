"""OpenVINO's own files, .xml with .bin next to it: written together, sealed together. Converted from integer ONNX, of a
form of its own (`OpenVinoGraph`)."""

import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from spequant.deploy.formats.format import Draft, ProgramFormat
from spequant.deploy.formats.onnx import WRITERS, IntegerGraph, code_graphs, integer_graph
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.onnx_file import KEY
from spequant.deploy.operations import Operation
from spequant.deploy.program import Program
from spequant.deploy.seal import OPEN, check_seal, sealed
from spequant.extras import needs
from spequant.files import placed_together


class OpenVinoGraph(IntegerGraph):
    """As OpenVINO computes it exactly."""

    def addend(self, op: Operation, name: str) -> str:
        """OpenVINO takes an addition into the layer that makes one addend, and leaves out the rounding of that: Round
        between, which changes no code, is not left out."""
        grid, constant = op.grid, self.constant
        if grid is None:
            return self.value(op)
        unit = [constant(np.float32(1), f"{name}.unit"), constant(np.uint8(grid.zero), f"{name}.zero")]
        counts = self.node("Round", [self.node("DequantizeLinear", [self.names[op], *unit], name)], name)
        return self.node("Mul", [counts, constant(np.float32(grid.step), f"{name}.step")], name)


def openvino_graph(program: Program, *, preprocessing: Preprocessing | None = None) -> Any:
    """As `integer_graph`, in the form that OpenVINO computes exactly."""
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
