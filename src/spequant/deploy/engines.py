"""Inference engines under one form: a model in, a function of named arrays out.

Each engine is imported when used; none computes anything here.
"""

import copy
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from spequant.deploy.c.engine import cc
from spequant.deploy.tflite_engines import litert, tflm
from spequant.extras import needs

Run = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]
"""{input: array} -> outputs in the model's order."""


def onnxruntime(model: bytes | Path, threads: int | None = None) -> Run:
    """An ONNX model on the CPU, at the default optimisations. threads: of one operation; None: all cores."""
    ort = needs("onnxruntime", "deploy")
    options = ort.SessionOptions()
    options.log_severity_level = 3
    if threads is not None:
        options.intra_op_num_threads = threads
    source = str(model) if isinstance(model, Path) else model
    session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, dict(feed))


def run_in_parts(run: Run, inputs: Mapping[str, np.ndarray], batch: int | None) -> list[np.ndarray]:
    """The outputs for inputs of (samples, ...), `batch` samples at a time; None: all at once."""
    count = len(next(iter(inputs.values())))
    size = batch or count
    parts = [run({name: x[i : i + size] for name, x in inputs.items()}) for i in range(0, count, size)]
    return [np.concatenate(outputs) for outputs in zip(*parts, strict=True)]


def openvino(model: bytes | Path, threads: int | None = None) -> Run:
    """An ONNX model, or OpenVINO's own (.xml, its .bin next to it), on the CPU; float operations in fp32.

    It has a thread of its own: OpenVINO gives the thread that it runs in a signal stack of 11 KiB, which Python's
    handlers overflow. In the main thread, the one that signals reach, Ctrl-C would end in a segmentation fault.
    """
    thread = ThreadPoolExecutor(1, thread_name_prefix="openvino")
    compiled = thread.submit(compile_openvino, model, threads).result()
    request = thread.submit(compiled.create_infer_request).result()
    outputs = compiled.outputs

    def infer(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        results = request.infer(dict(feed))
        return [np.array(results[out]) for out in outputs]

    return lambda feed: thread.submit(infer, feed).result()


def compile_openvino(model: bytes | Path, threads: int | None = None) -> Any:
    """OpenVINO's compiled model. Not for the main thread, see `openvino`."""
    core = needs("openvino", "deploy").Core()
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = threads
    return core.compile_model(core.read_model(model), "CPU", options)


def qonnx(model: bytes | Path, threads: int | None = None) -> Run:
    """A QONNX model by the qonnx package, node by node: to check a graph, not for speed."""
    wrap = needs("qonnx.core.modelwrapper", "deploy").ModelWrapper
    execute = needs("qonnx.core.onnx_exec", "deploy").execute_onnx
    shapes = needs("qonnx.transformation.infer_shapes", "deploy").InferShapes
    graph = wrap(str(model)) if isinstance(model, Path) else wrap(needs("onnx", "deploy").load_model_from_string(model))
    names = [out.name for out in graph.graph.output]
    sized: dict[int, Any] = {}

    def run(feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        batch = len(next(iter(feed.values())))
        if batch not in sized:
            sized[batch] = _of_batch(graph, batch).transform(shapes())
        results = execute(sized[batch], dict(feed))
        return [results[out] for out in names]

    return run


def _of_batch(graph: Any, batch: int) -> Any:
    """A copy of the qonnx graph for that many samples. Its reshapes say so themselves; qonnx's `ChangeBatchSize` would
    write the number into those, too, that mix samples."""
    sized = copy.deepcopy(graph)
    del sized.graph.value_info[:]
    for end in (*sized.graph.input, *sized.graph.output):
        shape = sized.get_tensor_shape(end.name)
        assert shape is not None
        sized.set_tensor_shape(end.name, [batch * shape[0], *shape[1:]])
    return sized


ENGINES: dict[str, Callable[..., Run]] = {
    "onnxruntime": onnxruntime,
    "openvino": openvino,
    "qonnx": qonnx,
    "litert": litert,
    "tflm": tflm,
    "cc": cc,
}
ENGINE_PACKAGES = {"litert": "ai-edge-litert", "tflm": "tflite-micro"}
"""Those that have another name than the engine."""


def versions() -> dict[str, str]:
    """{engine: version} of those that are installed."""
    installed = {}
    for name in ENGINES:
        try:
            installed[name] = version(ENGINE_PACKAGES.get(name, name))
        except PackageNotFoundError:
            continue
    return installed
