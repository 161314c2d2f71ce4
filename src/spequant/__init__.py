"""spequant: train neural networks at 2 to 8 bits, by SPEQ and other methods, and export them.

This file holds the public names and the version. A name is imported at its first use: until then torch is not, so that
the command line answers `--help` at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from spequant.calibration.batch_norm import reestimate_batch_norm
    from spequant.calibration.ranges import calibrate
    from spequant.comparison import compare
    from spequant.deploy import (
        align_ranges,
        check_export,
        export,
        export_onnx,
        load,
        load_packed,
        pack,
        quantize_biases,
    )
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
    "align_ranges",
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

_HOMES = {
    "calibration.batch_norm": ("reestimate_batch_norm",),
    "calibration.ranges": ("calibrate",),
    "comparison": ("compare",),
    "deploy": (
        "align_ranges",
        "check_export",
        "export",
        "export_onnx",
        "load",
        "load_packed",
        "pack",
        "quantize_biases",
    ),
    "methods": ("SPEQ", "Distill", "Retrain"),
    "methods.tasks": (
        *("Classification", "Detection", "MultiLabel", "Regression", "Segmentation", "SpanExtraction"),
        "TokenClassification",
    ),
    "policies": ("Fixed", "LowBit", "Mix", "Stochastic", "precision"),
    "preparation.placement": ("prepare", "unprepare"),
    "preparation.summary": ("summary",),
    "quantizers": ("Quantizer",),
    "train.optimizers": ("parameter_groups",),
}
"""{module: the public names that it defines}"""


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is not None:
        globals()[name] = getattr(import_module(f"{__name__}.{home}"), name)
        return globals()[name]
    if not name.startswith("_"):
        try:
            return import_module(f"{__name__}.{name}")  # a room: spequant.deploy
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
