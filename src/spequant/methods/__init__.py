"""Training methods: callables (model, batch) -> Losses. One method a file, its equation in the docstring."""

from spequant.methods.base import Losses, Method
from spequant.methods.distill import Distill, SPEQDistill
from spequant.methods.retrain import Retrain
from spequant.methods.speq import SPEQ

__all__ = ["SPEQ", "Distill", "Losses", "Method", "Retrain", "SPEQDistill"]
