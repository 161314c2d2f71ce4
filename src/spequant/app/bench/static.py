"""What the low-bit networks are held against: the float network at 8 bits by an engine's own quantization."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from spequant.extras import needs

STATIC = "static int8"
"""Name of its rows."""


def static_int8(path: Path, feed: Mapping[str, np.ndarray]) -> Path:
    """onnxruntime's static quantization of the float ONNX network at `path`, calibrated on `feed`, in a file next to
    it: weights int8 per channel, activations uint8, as pairs of QuantizeLinear and DequantizeLinear. OpenVINO runs it
    as fast as what its own NNCF makes (benchmarks/README.md)."""
    quantization: Any = needs("onnxruntime.quantization", "deploy")
    prepared, out = path.with_suffix(".prepared.onnx"), path.with_suffix(".int8.onnx")
    quantization.quant_pre_process(path, prepared, skip_symbolic_shape=True)
    feeds = iter([dict(feed)])

    class Reader(quantization.CalibrationDataReader):
        def get_next(self) -> Any:
            return next(feeds, None)

    kinds = {"activation_type": quantization.QuantType.QUInt8, "weight_type": quantization.QuantType.QInt8}
    quantization.quantize_static(prepared, out, Reader(), per_channel=True, **kinds)
    return out
