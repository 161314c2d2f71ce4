"""Run an exported network without spequant: pip install onnxruntime numpy

python onnxruntime_run.py model.onnx images.npy     prints a class for each image

images.npy: what the graph takes; of `spequant export RUN --to onnx --preprocessing` uint8 (n, channels, height, width).
"""

import sys

import numpy as np
import onnxruntime

model, images = sys.argv[1:]
session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
(logits,) = session.run(None, {"input": np.load(images)})
print(*logits.argmax(1))
