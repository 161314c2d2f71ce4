"""spequant: neural networks at 2 to 8 bits, trained by SPEQ. The public names; no code."""

from spequant.batch_norm import reestimate_batch_norm
from spequant.calibrate import calibrate
from spequant.methods import SPEQ, Distill, Losses, Retrain, SPEQDistill
from spequant.precision import Fixed, Mix, Stochastic, precision
from spequant.prepare import prepare, unprepare
from spequant.quantizers import Quantizer
from spequant.tasks import Classification

__all__ = [
    "SPEQ",
    "Classification",
    "Distill",
    "Fixed",
    "Losses",
    "Mix",
    "Quantizer",
    "Retrain",
    "SPEQDistill",
    "Stochastic",
    "calibrate",
    "precision",
    "prepare",
    "reestimate_batch_norm",
    "unprepare",
]
