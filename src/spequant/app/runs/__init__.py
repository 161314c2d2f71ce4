"""Runs: a recipe carried out in a folder, and what its result is turned into."""

from spequant.app.runs.estimate import dry_run
from spequant.app.runs.evaluation import evaluate_source
from spequant.app.runs.execution import run
from spequant.app.runs.exporting import export_source
from spequant.app.runs.folder import listing
from spequant.app.runs.prediction import predict_source
from spequant.app.runs.reporter import Quiet, Reporter
from spequant.app.runs.sources import load_run, open_source

__all__ = [
    "Quiet",
    "Reporter",
    "dry_run",
    "evaluate_source",
    "export_source",
    "listing",
    "load_run",
    "open_source",
    "predict_source",
    "run",
]
