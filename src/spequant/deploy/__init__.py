"""From a trained network to files: packed codes, and integer graphs with the answers of training.

Needs the extra `deploy` where a function writes or runs a graph; importing it here needs nothing.
"""

from spequant.deploy.biases import quantize_biases
from spequant.deploy.compare import compare_answers
from spequant.deploy.cost import LayerCost, model_costs, packed_costs, program_costs, tflite_costs, totals
from spequant.deploy.exporting import Exported, export, export_mixed, export_onnx, load
from spequant.deploy.formats import FORMATS, Format
from spequant.deploy.formats.mixed import Mixed, mixed_graph
from spequant.deploy.formats.onnx import integer_graph
from spequant.deploy.formats.openvino import read_openvino, write_openvino
from spequant.deploy.formats.packed import check_packed, load_packed, pack, packed_about
from spequant.deploy.formats.qonnx import quant_graph
from spequant.deploy.formats.tflite import tflite_graph
from spequant.deploy.loaded import Loaded
from spequant.deploy.lowering import lower
from spequant.deploy.onnx_file import read_onnx, read_program, write_onnx
from spequant.deploy.parity import Parity
from spequant.deploy.program import Program
from spequant.deploy.ranges import align_ranges
from spequant.deploy.readiness import ExportCheck, check_export
from spequant.deploy.twin import Twin
from spequant.deploy.width import at_width

__all__ = [
    "FORMATS",
    "ExportCheck",
    "Exported",
    "Format",
    "LayerCost",
    "Loaded",
    "Mixed",
    "Parity",
    "Program",
    "Twin",
    "align_ranges",
    "at_width",
    "check_export",
    "check_packed",
    "compare_answers",
    "export",
    "export_mixed",
    "export_onnx",
    "integer_graph",
    "load",
    "load_packed",
    "lower",
    "mixed_graph",
    "model_costs",
    "pack",
    "packed_about",
    "packed_costs",
    "program_costs",
    "quant_graph",
    "quantize_biases",
    "read_onnx",
    "read_openvino",
    "read_program",
    "tflite_costs",
    "tflite_graph",
    "totals",
    "write_onnx",
    "write_openvino",
]
