"""The engines of .tflite files. Their tensors are channels last; here they go in and come out as torch has them."""

import os
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from spequant.extras import needs

MARGIN = 2**24
"""Bytes of a microcontroller's memory beside those of tensors, more than any graph needs; too few end the process."""

TfliteRun = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


def litert(model: bytes | Path, threads: int | None = None) -> TfliteRun:
    """A .tflite file in LiteRT on the CPU, by XNNPACK where that has the operator. threads: None: all cores."""
    interpreter = _interpreter(model, threads or os.cpu_count() or 1)
    inputs = {end["name"]: end for end in interpreter.get_input_details()}
    outputs = [end["index"] for end in interpreter.get_output_details()]

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arrays = {inputs[name]["index"]: _to_last(x) for name, x in feed.items()}
        for index, x in arrays.items():
            interpreter.resize_tensor_input(index, x.shape)
        interpreter.allocate_tensors()
        for index, x in arrays.items():
            interpreter.set_tensor(index, x)
        interpreter.invoke()
        return [_to_first(interpreter.get_tensor(index)) for index in outputs]

    return run


def _interpreter(model: bytes | Path, threads: int) -> Any:
    source = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}
    with _stderr():  # where it says that it has XNNPACK
        interpreter = needs("ai_edge_litert.interpreter", "tflite").Interpreter(**source, num_threads=threads)
        interpreter.allocate_tensors()
    return interpreter


def tflm(model: bytes | Path, threads: int | None = None) -> TfliteRun:
    """A .tflite file in TensorFlow Lite Micro, image by image, by reference kernels in one thread: to check a file, not
    for speed."""
    data = model.read_bytes() if isinstance(model, Path) else model
    ends = _ends(data)
    interpreter = _micro(data)

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        arrays = {ends["inputs"].index(name): _to_last(x) for name, x in feed.items()}
        parts = []
        for i in range(len(next(iter(arrays.values())))):
            for index, x in arrays.items():
                interpreter.set_input(x[i : i + 1], index)
            interpreter.invoke()
            parts.append([interpreter.get_output(k).copy() for k in range(len(ends["outputs"]))])
        return [_to_first(np.concatenate(results)) for results in zip(*parts, strict=True)]

    return run


def arena_size(path: Path) -> int:
    """Bytes of memory that TensorFlow Lite Micro needs for tensors and the graph's own data, beside the file itself."""
    data = path.read_bytes()
    interpreter = _micro(data)
    with _stderr() as said:
        interpreter.print_allocations()
    total = re.search(rb"Arena allocation total (\d+) bytes", said())
    if total is None:
        raise RuntimeError(f"TensorFlow Lite Micro does not say what {path} takes: {said()[:200]!r}")
    return int(total[1])


def _micro(data: bytes) -> Any:
    make = needs("tflite_micro.python.tflite_micro.runtime", "tflite").Interpreter.from_bytes
    return make(data, arena_size=_ends(data)["bytes"] + MARGIN)


def _ends(data: bytes) -> dict[str, Any]:
    """Names of the inputs and outputs, and bytes of all tensors that are computed."""
    schema = needs("tflite_micro.tensorflow.lite.micro.python.schema_py_generated", "tflite")
    graph = schema.Model.GetRootAs(data).Subgraphs(0)
    tensors = [graph.Tensors(i) for i in range(graph.TensorsLength())]
    sizes = [4 * int(np.prod(t.ShapeAsNumpy())) for t in tensors if not t.Buffer()]
    ends = {"inputs": graph.InputsAsNumpy(), "outputs": graph.OutputsAsNumpy()}
    return {"bytes": sum(sizes), **{name: [tensors[i].Name().decode() for i in e] for name, e in ends.items()}}


def _to_last(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)) if x.ndim > 2 else np.ascontiguousarray(x)


def _to_first(x: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(x, -1, 1)) if x.ndim > 2 else x


@contextmanager
def _stderr() -> Iterator[Callable[[], bytes]]:
    """Inside, what the process writes to stderr goes to a file; the function gives it, also afterwards."""
    with tempfile.TemporaryFile() as file:
        kept, content = os.dup(2), b""
        os.dup2(file.fileno(), 2)
        try:
            yield lambda: content
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            content = file.read()
