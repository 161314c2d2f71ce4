"""spequant: train neural networks at 2 to 8 bits, by SPEQ and other methods, and export them.

This file holds the public names and the version, and no code.
"""

from spequant.calibration.batch_norm import reestimate_batch_norm
from spequant.calibration.ranges import calibrate
from spequant.comparison import compare
from spequant.deploy import check_export, export, export_onnx, load, load_packed, pack, quantize_biases
from spequant.methods import SPEQ, Distill, Retrain
from spequant.methods.tasks import (
    Classification,
    Detection,
    MultiLabel,
    Regression,
    Segmentation,
    SpanExtraction,
    TokenClassification,
)
from spequant.policies import Fixed, LowBit, Mix, Stochastic, precision
from spequant.preparation.placement import prepare, unprepare
from spequant.preparation.summary import summary
from spequant.quantizers import Quantizer
from spequant.train.optimizers import parameter_groups

__version__ = "0.1.0"
"""The version that the build reads; CITATION.cff and CHANGELOG.md repeat it."""

__all__ = [
    "SPEQ",
    "Classification",
    "Detection",
    "Distill",
    "Fixed",
    "LowBit",
    "Mix",
    "MultiLabel",
    "Quantizer",
    "Regression",
    "Retrain",
    "Segmentation",
    "SpanExtraction",
    "Stochastic",
    "TokenClassification",
    "__version__",
    "calibrate",
    "check_export",
    "compare",
    "export",
    "export_onnx",
    "load",
    "load_packed",
    "pack",
    "parameter_groups",
    "precision",
    "prepare",
    "quantize_biases",
    "reestimate_batch_norm",
    "summary",
    "unprepare",
]
