"""Tasks: how a model gets from a batch to answers, their loss on the labels, and how a teacher's are learned from."""

from spequant.methods.tasks.classification import Classification
from spequant.methods.tasks.detection import Detection
from spequant.methods.tasks.multi_label import MultiLabel
from spequant.methods.tasks.regression import Regression
from spequant.methods.tasks.segmentation import Segmentation
from spequant.methods.tasks.span_extraction import SpanExtraction
from spequant.methods.tasks.task import (
    AnyTask,
    Counted,
    Meter,
    Metered,
    Task,
    check_task,
    distilled,
    pooled,
)
from spequant.methods.tasks.token_classification import TokenClassification

by_name: dict[str, type] = {
    "classification": Classification,
    "multi-label": MultiLabel,
    "regression": Regression,
    "segmentation": Segmentation,
    "token-classification": TokenClassification,
    "span-extraction": SpanExtraction,
    "detection": Detection,
}
"""{name of a task in recipes: its class, called without arguments}"""

__all__ = [
    "AnyTask",
    "Classification",
    "Counted",
    "Detection",
    "Meter",
    "Metered",
    "MultiLabel",
    "Regression",
    "Segmentation",
    "SpanExtraction",
    "Task",
    "TokenClassification",
    "by_name",
    "check_task",
    "distilled",
    "pooled",
]
