"""ONNX files of this project: written whole and sealed, and read back to the program that they were made of.

Metadata of the model: "spequant", JSON with

    format         of what follows
    kind           "integer" or "qonnx"
    program        integer graphs: the ops, their constants by name
    preprocessing  [mean, std] where the input is uint8 images, or null
    about          what the writer said of the network
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spequant.deploy import program as ir
from spequant.deploy.integers import input_step
from spequant.deploy.program import Float, Grid, Home, Op, Program, Weighted
from spequant.deploy.seal import OPEN, check_seal, sealed
from spequant.extras import needs
from spequant.files import placed

FORMAT, KEY = 1, "spequant"
OPS = {kind.__name__: kind for kind in (ir.Input, ir.Quantize, Weighted, ir.Add, ir.MaxPool, ir.Move, Float)}
ATTRIBUTES = {
    "Weighted": ("stride", "padding", "dilation", "groups"),
    "MaxPool": ("kernel", "stride", "padding"),
    "Move": ("kind", "keep"),
    "Float": ("kind", "attributes"),
}
Preprocessing = tuple[Sequence[float], Sequence[float]]


def metadata(kind: str, content: Mapping[str, Any]) -> dict[str, str]:
    """Of a model; `write_onnx` closes the seal."""
    text = json.dumps({"format": FORMAT, "kind": kind, **content}, separators=(",", ":"))
    return {KEY: text, "seal": OPEN}


def describe(program: Program, tensors: Mapping[Op, Sequence[str]]) -> list[dict[str, Any]]:
    """The ops as JSON; `tensors`: names of their constants."""
    numbers = {op: i for i, op in enumerate(program.ops)}
    rows = []
    for op in program.ops:
        row: dict[str, Any] = {"op": type(op).__name__, "name": op.name, "shape": list(op.shape)}
        row["inputs"] = [numbers[i] for i in op.inputs]
        if op.grid is not None:
            home = op.grid.home
            row["grid"] = [op.grid.step, op.grid.low, op.grid.high]
            row["clamp"] = op.grid.clamp
            row["home"] = None if home is None else [home.bits, home.levels, home.low, home.high]
        if op in tensors:
            row["tensors"] = list(tensors[op])
        rows.append(row | {name: getattr(op, name) for name in ATTRIBUTES.get(row["op"], ())})
    return [*rows, {"output": numbers[program.output]}]


LARGEST = 2**31 - 2**20
"""Bytes of weights that one ONNX file holds: protobuf counts in 31 bits."""


def check_size(weights: int) -> None:
    """ValueError: `weights`, bytes, are more than an ONNX file can hold."""
    if weights > LARGEST:
        raise ValueError(
            f"the graph's weights take {weights:,} bytes; an ONNX file holds at most {LARGEST:,}. Export a smaller "
            "network, or parts of it; spequant.pack has no such limit"
        )


def write_onnx(model: Any, path: str | Path) -> None:
    """Write what `integer_graph` or `quant_graph` made to `path`, whole or not at all (OSError). ValueError: too large
    for one file."""
    check_size(sum(len(tensor.raw_data) for tensor in model.graph.initializer))
    with placed(Path(path)) as temporary:
        temporary.write_bytes(sealed(model.SerializeToString()))


def read_onnx(path: str | Path) -> tuple[Any, dict[str, Any]]:
    """(onnx model, its metadata). FileNotFoundError. ValueError: changed, damaged, of a newer format, or not ours."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected an ONNX file")
    data = path.read_bytes()
    check_seal(path, data)
    onnx = needs("onnx", "deploy")
    try:
        model = onnx.load_model_from_string(data)
        head = json.loads({p.key: p.value for p in model.metadata_props}[KEY])
        version, _, _ = head["format"], head["kind"], head["about"]
    except Exception as error:  # protobuf's DecodeError is no ValueError
        raise ValueError(f"{path} is no ONNX file of spequant ({error!r}); export it anew") from error
    if version != FORMAT:
        raise ValueError(
            f"{path}: format is {version!r}; this version reads {FORMAT}: install the version that wrote it"
        )
    return model, head


def read_program(path: str | Path) -> tuple[Program, Preprocessing | None, dict[str, Any]]:
    """(program, preprocessing, about) of an integer graph; errors as `read_onnx`."""
    model, head = read_onnx(path)
    return *program_in(Path(path), model, head), head["about"]


def program_in(path: Path, model: Any, head: Mapping[str, Any]) -> tuple[Program, Preprocessing | None]:
    """(program, preprocessing) in what `read_onnx` gave. ValueError: no integer graph, or at odds with itself."""
    if head["kind"] != "integer":
        raise ValueError(f"{path} is a {head['kind']} graph; expected an integer one, of `--to onnx`")
    to_array = needs("onnx", "deploy").numpy_helper.to_array
    constants = {t.name: torch.from_numpy(to_array(t).copy()) for t in model.graph.initializer}
    try:
        *rows, last = head["program"]
        ops: list[Op] = []
        for row in rows:
            ops.append(_op(row, ops, constants))
        mean_std = head["preprocessing"]
        return Program(ops, ops[last["output"]]), None if mean_std is None else tuple(mean_std)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} contradicts itself: {error!r}") from error


def _op(row: Mapping[str, Any], ops: Sequence[Op], constants: Mapping[str, Tensor]) -> Op:
    grid = None
    if "grid" in row:
        home = None if row["home"] is None else Home(*row["home"])
        step, low, high = row["grid"]
        grid = Grid(step, low, high, home, tuple(row["clamp"]))
    inputs = tuple(ops[i] for i in row["inputs"])
    own: dict[str, Any] = {name: _frozen(row[name]) for name in ATTRIBUTES.get(row["op"], ())}
    tensors = tuple(constants[name] for name in row.get("tensors", ()))
    base = row["name"], inputs, grid, tuple(row["shape"])
    if row["op"] == "Weighted":
        weight, scale, bias = tensors
        op = Weighted(*base, weight, scale.double(), bias.double(), **own)
        op.offset = bias.double() * (input_step(op) * scale).double()
        return op
    if row["op"] == "Float":
        flat = own["kind"] == "affine"
        return Float(*base, **own, tensors=tuple(t.flatten() for t in tensors) if flat else tensors)
    kind: Any = OPS[row["op"]]
    return kind(*base, **own)


def _frozen(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    if isinstance(value, dict):
        return {k: _frozen(v) for k, v in value.items()}
    return tuple(value) if isinstance(value, list) else value
