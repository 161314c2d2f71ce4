"""ONNX files of this project: written whole and sealed, and read back to the program that they were made of.

Metadata of the model: "spequant", JSON with

    format         of what follows
    kind           "integer", "mixed" or "qonnx"
    program        integer graphs: the operations, their constants by name
    preprocessing  [mean, std] where the input is uint8 images, or null
    act_bits       widths of its activations, in ascending order
    about          what the writer said of the network

Format 1 had no `act_bits`, and other names for operations (`_of_format_1`).
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spequant.deploy.grids import Grid, Home
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.operations import OPERATIONS, Function, Operation
from spequant.deploy.program import Program
from spequant.deploy.seal import OPEN, check_seal, sealed
from spequant.extras import needs
from spequant.files import placed

FORMAT, KEY = 2, "spequant"
READABLE = (1, FORMAT)
LARGEST = 2**31 - 2**20
"""Bytes of weights that one ONNX file holds: protobuf counts in 31 bits."""


def metadata(kind: str, content: Mapping[str, Any], about: Mapping[str, Any] | None) -> dict[str, str]:
    """Of a model; `write_onnx` closes the seal."""
    head = {"format": FORMAT, "kind": kind, **content, "about": dict(about or {})}
    return {KEY: json.dumps(head, separators=(",", ":")), "seal": OPEN}


def described(program: Program, tensors: Mapping[Operation, Sequence[str]]) -> list[dict[str, Any]]:
    """The operations as JSON, those that a function is made of before it; `tensors`: names of their constants."""
    ops = [one for op in program.ops for one in (*_parts(op), op)]
    numbers = {op: i for i, op in enumerate(ops)}
    rows = []
    for op in ops:
        row: dict[str, Any] = {"op": type(op).__name__, "name": op.name, "shape": list(op.shape)}
        row["inputs"] = [numbers[i] for i in op.inputs]
        if op.grid is not None:
            home = op.grid.home
            row["grid"] = [op.grid.step, op.grid.low, op.grid.high]
            row["clamp"] = op.grid.clamp
            row["home"] = None if home is None else _home(home)
        if op in tensors:
            row["tensors"] = list(tensors[op])
        elif constants := [v.tolist() for v in vars(op).values() if isinstance(v, Tensor)]:
            row["values"] = constants  # of a part that is written as a table
        if parts := _parts(op):
            row["parts"] = [numbers[part] for part in parts]
        rows.append(row | {"attributes": op.attributes()})
    ends = {"outputs": {name: numbers[op] for name, op in program.outputs.items()}}
    return [*rows, {"output": numbers[program.output], **(ends if len(program.outputs) > 1 else {})}]


def _parts(op: Operation) -> tuple[Operation, ...]:
    return op.parts if isinstance(op, Function) else ()


def check_size(weights: int) -> None:
    """ValueError: `weights`, bytes, are more than an ONNX file can hold."""
    if weights > LARGEST:
        raise ValueError(
            f"the graph's weights take {weights:,} bytes; an ONNX file holds at most {LARGEST:,}. Export a smaller "
            "network, or parts of it; spequant.pack has no such limit"
        )


def write_onnx(model: Any, path: str | Path) -> None:
    """Write what `integer_graph`, `quant_graph` or `mixed_graph` made to `path`, whole or not at all.

    Raises:
        OSError: `path` cannot be written.
        ValueError: too large for one file.
    """
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
    if version not in READABLE:
        raise ValueError(
            f"{path}: format is {version!r}; this version reads {' and '.join(map(str, READABLE))}: install the "
            "version that wrote it"
        )
    return model, head


def numbers_in(model: Any) -> dict[str, int]:
    """How many numbers of each type an ONNX model stores, e.g. {"int8": 9408}."""
    kinds = needs("onnx", "deploy").TensorProto.DataType
    counts: Counter[str] = Counter()
    for tensor in model.graph.initializer:
        counts[kinds.Name(tensor.data_type).lower()] += math.prod(tensor.dims)
    return dict(counts)


def read_program(path: str | Path) -> tuple[Program, Preprocessing | None, dict[str, Any]]:
    """(program, preprocessing, about) of an integer graph; errors as `read_onnx`."""
    model, head = read_onnx(path)
    return program_in(Path(path), model, head), _pair(head), head["about"]


def program_in(path: Path, model: Any, head: Mapping[str, Any]) -> Program:
    """The program in what `read_onnx` gave. ValueError: no integer graph, or at odds with itself."""
    if head["kind"] != "integer":
        raise ValueError(f"{path} is a {head['kind']} graph; expected an integer one, of `--to onnx`")
    to_array = needs("onnx", "deploy").numpy_helper.to_array
    constants = {t.name: torch.from_numpy(to_array(t).copy()) for t in model.graph.initializer}
    try:
        *rows, last = head["program"]
        ops: list[Operation] = []
        for row in rows:
            ops.append(_operation(_of_format_1(row) if head["format"] == 1 else row, ops, constants))
        outputs = {name: ops[number] for name, number in last.get("outputs", {}).items()}
        parts = {part for op in ops for part in _parts(op)}
        return Program([op for op in ops if op not in parts], ops[last["output"]], outputs)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} contradicts itself: {error!r}") from error


def loaded_onnx(path: Path, name: str, engines: tuple[str, ...], model: Any, head: Mapping[str, Any]) -> Loaded:
    """What `read_onnx` gave, as a file of the format `name`."""
    sizes = {i.name: i.type.tensor_type.shape.dim for i in (*model.graph.input, *model.graph.output)}
    inputs = {i.name: tuple(d.dim_value or None for d in sizes[i.name]) for i in model.graph.input}
    kinds = needs("onnx", "deploy").TensorProto
    whole = {kinds.INT64: "int64", kinds.INT32: "int32"}
    tokens = {i.name: i.type.tensor_type.elem_type for i in model.graph.input}
    return Loaded(
        path,
        name,
        engines,
        about=head["about"],
        inputs=inputs,
        tokens={name: whole[kind] for name, kind in tokens.items() if kind in whole},
        outputs=tuple(out.name for out in model.graph.output),
        act_bits=tuple(head.get("act_bits", ())),
        preprocessing=_pair(head),
        batch=head.get("batch"),
    )


def _pair(head: Mapping[str, Any]) -> Preprocessing | None:
    values = head.get("preprocessing")
    return None if values is None else (values[0], values[1])


OPERATION_BY_NAME = {kind.__name__: kind for kind in OPERATIONS}
KINDS_OF_1 = {**{kind.WORD: kind.__name__ for kind in OPERATIONS}, "layer": "FloatLayer"}
ATTRIBUTES_OF_1 = ("stride", "padding", "dilation", "groups", "kernel", "keep")


def _home(home: Home) -> list[Any]:
    """The arguments of `Home`; the last stands only where steps are powers of two, as older versions know four."""
    return [home.bits, home.levels, home.low, home.high, *([] if home.powers is None else [home.powers])]


def _of_format_1(row: Mapping[str, Any]) -> dict[str, Any]:
    """`row` as it is today. Then "Move" had the kinds flatten, concat and amax on codes, "Float" all that is float."""
    attributes = row.get("attributes", {name: row[name] for name in ATTRIBUTES_OF_1 if name in row})
    if row["op"] not in ("Move", "Float"):
        return {**row, "attributes": attributes}
    kind = KINDS_OF_1[row["kind"]]
    return {**row, "op": kind, "attributes": attributes if row["op"] == "Float" or kind == "Amax" else {}}


def _operation(row: Mapping[str, Any], ops: Sequence[Operation], constants: Mapping[str, Tensor]) -> Operation:
    grid = None
    if "grid" in row:
        home = None if row["home"] is None else Home(*row["home"])
        step, low, high = row["grid"]
        grid = Grid(step, low, high, home, tuple(row["clamp"]))
    fields = {name: _frozen(value) for name, value in row["attributes"].items()}
    fields |= {"name": row["name"], "grid": grid, "shape": tuple(row["shape"])}
    fields["inputs"] = tuple(ops[i] for i in row["inputs"])
    if "parts" in row:
        fields["parts"] = tuple(ops[i] for i in row["parts"])
    tensors = [constants[name] for name in row.get("tensors", ())]
    return OPERATION_BY_NAME[row["op"]].restored(
        fields, tensors or [torch.tensor(values) for values in row.get("values", ())]
    )


def _frozen(value: Any) -> Any:
    """Lists of JSON as the tuples that they were."""
    return tuple(value) if isinstance(value, list) else value
