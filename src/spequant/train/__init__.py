"""Training and evaluation: one loop, its optimisers, what it logs."""

from spequant.train.diagnostics import Diagnostics
from spequant.train.loop import Evaluation, Progress, evaluate, fit
from spequant.train.optimizers import make_optimizer, make_schedule, parameter_groups

__all__ = [
    "Diagnostics",
    "Evaluation",
    "Progress",
    "evaluate",
    "fit",
    "make_optimizer",
    "make_schedule",
    "parameter_groups",
]
