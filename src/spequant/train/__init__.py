"""Training and evaluation: one loop, its state and checkpoints, optimizers, and what it logs."""

from spequant.train.compiled import Compiled
from spequant.train.diagnostics import Diagnostics
from spequant.train.guard import NotFinite
from spequant.train.launch import keep_freed_memory, make_accelerator, make_deterministic, wrap
from spequant.train.looks import Looks, layers_row, read_looks
from spequant.train.loop import Evaluation, Interrupted, evaluate, fit, samples, train_step
from spequant.train.optimizers import SGD, AdamW, OptimizerSettings, make_optimizer, make_schedule, parameter_groups
from spequant.train.replay import first_to_go
from spequant.train.state import Progress, Snapshot, TrainingState

__all__ = [
    "SGD",
    "AdamW",
    "Compiled",
    "Diagnostics",
    "Evaluation",
    "Interrupted",
    "Looks",
    "NotFinite",
    "OptimizerSettings",
    "Progress",
    "Snapshot",
    "TrainingState",
    "evaluate",
    "first_to_go",
    "fit",
    "keep_freed_memory",
    "layers_row",
    "make_accelerator",
    "make_deterministic",
    "make_optimizer",
    "make_schedule",
    "parameter_groups",
    "read_looks",
    "samples",
    "train_step",
    "wrap",
]
