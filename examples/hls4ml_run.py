"""Make an HLS project of an exported network and run it as it will be on an FPGA: pip install hls4ml qonnx onnxruntime

python hls4ml_run.py model.qonnx.onnx inputs.npy PROJECT [PRECISION]     prints a class for each input; needs g++

inputs.npy: float32, as the network takes them, (n, features) or (n, channels, height, width). PROJECT: a new folder.
PRECISION: of what is not quantized, fixed<bits, whole bits>: too few fractional bits round what lies between codes.
"""

import sys
from contextlib import redirect_stdout

import hls4ml
import numpy as np
from onnx import helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.channels_last import (
    ConvertToChannelsLastAndClean,
    InsertChannelsLastDomainsAndTrafos,
    MoveTransposePastFork,
)
from qonnx.util.cleanup import cleanup_model


def channels_last(model):
    """Forks first: qonnx moves a transposition past one reader of a tensor even where there are two."""
    model = model.transform(InsertChannelsLastDomainsAndTrafos()).transform(MoveTransposePastFork())
    model = cleanup_model(model.transform(ConvertToChannelsLastAndClean(make_input_channels_last=True)))
    for node in [n for n in model.graph.node if n.op_type == "GlobalAveragePool"]:
        # hls4ml would take its channels for rows; an average over a window as large as the image it reads rightly.
        before = model.find_producer(node.input[0])
        batch, height, width, channels = model.get_tensor_shape(before.input[0])
        own = {"kernel_shape": [height, width], "strides": [height, width], "pads": [0, 0, 0, 0]}
        domain = "qonnx.custom_op.channels_last"
        mean = helper.make_node("AveragePool", [before.input[0]], node.output, node.name, domain=domain, **own)
        model.graph.node.insert(list(model.graph.node).index(before), mean)
        model.set_tensor_shape(node.output[0], [batch, 1, 1, channels])
        model.graph.node.remove(before)
        model.graph.node.remove(node)
    return model


path, inputs, project = sys.argv[1:4]
precision = sys.argv[4] if len(sys.argv) > 4 else "fixed<48,16>"
x = np.load(inputs).astype(np.float32)
with redirect_stdout(sys.stderr):
    model = cleanup_model(ModelWrapper(path))
    if x.ndim == 4:
        model = channels_last(model)
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1))
    settings = {"granularity": "name", "backend": "Vivado", "default_precision": precision}
    config = hls4ml.utils.config_from_onnx_model(model, **settings)
    made = hls4ml.converters.convert_from_onnx_model(model, hls_config=config, output_dir=project, backend="Vivado")
    made.compile()
    logits = np.asarray(made.predict(x)).reshape(len(x), -1)
print(*logits.argmax(1))
