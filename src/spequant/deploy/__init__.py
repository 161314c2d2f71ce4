"""From a trained network to files: packed codes, and integer graphs with the answers of training.

Needs the extra `deploy` where a function writes or runs a graph; importing it here needs nothing.
"""

from spequant.deploy.biases import quantize_biases
from spequant.deploy.cost import LayerCost, model_costs, program_costs, totals
from spequant.deploy.lower import lower
from spequant.deploy.mixed import Mixed, export_mixed, mixed_graph
from spequant.deploy.onnx_export import export_onnx
from spequant.deploy.onnx_file import read_onnx, read_program, write_onnx
from spequant.deploy.onnx_integer import integer_graph
from spequant.deploy.onnx_quant import quant_graph
from spequant.deploy.openvino_file import read_openvino, write_openvino
from spequant.deploy.packed import check_packed, load_packed, pack, packed_about
from spequant.deploy.parity import Parity, compare
from spequant.deploy.program import Program
from spequant.deploy.twin import Twin
from spequant.deploy.width import at_width

__all__ = [
    "LayerCost",
    "Mixed",
    "Parity",
    "Program",
    "Twin",
    "at_width",
    "check_packed",
    "compare",
    "export_mixed",
    "export_onnx",
    "integer_graph",
    "load_packed",
    "lower",
    "mixed_graph",
    "model_costs",
    "pack",
    "packed_about",
    "program_costs",
    "quant_graph",
    "quantize_biases",
    "read_onnx",
    "read_openvino",
    "read_program",
    "totals",
    "write_onnx",
    "write_openvino",
]
