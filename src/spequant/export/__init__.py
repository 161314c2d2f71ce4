"""From a trained network to files: packed codes, and integer graphs with the answers of training.

Needs the extra `deploy` where a function writes or runs ONNX; importing it here needs nothing.
"""

from spequant.export.biases import quantize_biases
from spequant.export.lower import lower
from spequant.export.onnx_integer import integer_graph, write_onnx
from spequant.export.packed import load_packed, pack, packed_about
from spequant.export.twin import Twin

__all__ = [
    "Twin",
    "integer_graph",
    "load_packed",
    "lower",
    "pack",
    "packed_about",
    "quantize_biases",
    "write_onnx",
]
