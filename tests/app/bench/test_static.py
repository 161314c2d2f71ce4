"""The float network at 8 bits by onnxruntime's own quantization."""

import numpy as np
import pytest

from spequant.app.bench.static import static_int8
from spequant.deploy.engines import ENGINES

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")


def test_a_convolution_at_8_bits(tmp_path):
    rng = np.random.default_rng(0)
    weight = onnx.numpy_helper.from_array(rng.standard_normal((8, 3, 3, 3)).astype(np.float32), "weight")
    node = onnx.helper.make_node("Conv", ["input", "weight"], ["output"], kernel_shape=[3, 3])
    ends = [onnx.helper.make_tensor_value_info(n, 1, s) for n, s in (("input", [2, 3, 8, 8]), ("output", [2, 8, 6, 6]))]
    graph = onnx.helper.make_graph([node], "g", ends[:1], ends[1:], [weight])
    path = tmp_path / "fp32.onnx"
    onnx.save(onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9), path)
    feed = {"input": rng.standard_normal((2, 3, 8, 8)).astype(np.float32)}
    eight = static_int8(path, feed)
    kinds = {tensor.data_type for tensor in onnx.load(eight).graph.initializer if tensor.name.startswith("weight")}
    assert onnx.TensorProto.INT8 in kinds
    (expected,), (got,) = (ENGINES["onnxruntime"](file, 1)(feed) for file in (path, eight))
    assert 0 < np.abs(got - expected).max() < 0.05 * expected.std()
