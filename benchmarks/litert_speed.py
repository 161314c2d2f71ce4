"""How fast LiteRT runs .tflite files of one network: in float, by LiteRT's own 8-bit quantization, and as given.

    python benchmarks/litert_speed.py w2.tflite w4.tflite w8.tflite --network resnet20 --image 32

One thread, one image, rounds of ten calls interleaved; processor time, medians and the least of a round. The float
network has random weights, on which the time does not depend; LiteRT's own quantization is the calibrator in
ai_edge_litert, on 64 random images.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import spequant
from spequant import models
from spequant.deploy import lower
from spequant.deploy.float_program import float_program
from spequant.deploy.formats.tflite import tflite_graph
from spequant.deploy.tflite_nodes import schema
from spequant.extras import needs
from spequant.quantizers import PACT, SAWB

CALLS = 10
"""In a round."""
FLOAT32, INT8, INT32 = (np.dtype(kind).num for kind in (np.float32, np.int8, np.int32))


def own_8_bits(data: bytes, images: np.ndarray) -> bytes:
    """The float file `data` as LiteRT quantizes it; its ends stay float.

    Channels without weights, as a shortcut has that only adds channels, get the scale 0, which XNNPACK refuses: other
    kernels, slower, would compute such a layer. With the scale 1 it computes the same.
    """
    calibration: Any = needs("ai_edge_litert._pywrap_tensorflow_lite_calibration_wrapper", "tflite")
    wrapper = calibration.CalibrationWrapper(data, [], [])
    wrapper.Prepare()
    for image in images:
        wrapper.FeedTensor([image[None]])
    model = schema().ModelT.InitFromPackedBuf(wrapper.QuantizeModel(FLOAT32, FLOAT32, True, INT8, INT32, False, False))
    for tensor in model.subgraphs[0].tensors:
        if tensor.quantization is not None and tensor.quantization.scale is not None:
            tensor.quantization.scale = np.where(tensor.quantization.scale == 0, 1, tensor.quantization.scale)
    builder = needs("flatbuffers", "tflite").Builder(2**16)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def ready(data: bytes, image: np.ndarray) -> Callable[[], Any]:
    interpreter = needs("ai_edge_litert.interpreter", "tflite").Interpreter(model_content=data, num_threads=1)
    interpreter.allocate_tensors()
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], image[None])
    return interpreter.invoke


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--image", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    torch.manual_seed(0)
    images = np.random.default_rng(0).standard_normal((64, args.image, args.image, 3), dtype=np.float32)
    network = getattr(models, args.network)().eval()
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    model = spequant.prepare(network, weight=SAWB(8), act=PACT(8))
    spequant.calibrate(model, [x], samples=len(x))
    program = float_program(lower(model.eval(), x[:1]))
    files = {"float": tflite_graph(program).data}
    files["LiteRT's own 8 bits"] = own_8_bits(files["float"], images)
    files |= {path.name: path.read_bytes() for path in args.files}
    calls = {name: ready(data, images[0]) for name, data in files.items()}
    times: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(args.rounds):
        for name, call in calls.items():
            call()
            start = time.process_time()
            for _ in range(CALLS):
                call()
            times[name].append(1000 * (time.process_time() - start) / CALLS)
    own = times["LiteRT's own 8 bits"]
    for name, row in times.items():
        median, least = statistics.median(row), min(row)
        shares = f"{median / statistics.median(own):.3f} and {least / min(own):.3f} of own 8 bits"
        print(f"{name}  {median:.4f} ms  least {least:.4f}  {shares}  {len(files[name]):,} bytes")


if __name__ == "__main__":
    main()
