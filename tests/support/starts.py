"""What methods are made with, as a run has it at hand."""

from typing import Any

from torch import nn

from spequant.app.runs.weights import load_teacher
from spequant.methods import Start
from spequant.methods.tasks import Classification


def start(network: nn.Module, student: nn.Module | None = None, **changes: Any) -> Start:
    """Of a run of ten calls with seed 5; student: None for the network itself."""
    student = network if student is None else student
    usual = {"task": Classification(), "steps": 10, "seed": 5, "quantized": lambda bits: student, "load": load_teacher}
    return Start(**{**usual, "network": network, "student": student, **changes})
