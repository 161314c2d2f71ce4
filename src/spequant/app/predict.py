"""What the command predict prints; no arithmetic."""

import csv
import io

from rich.table import Table

from spequant.app.commands.files import Predict
from spequant.app.commands.screen import print_table
from spequant.app.runs import predict_source
from spequant.app.runs.prediction import Answers
from spequant.files import destination, write_whole
from spequant.names import some_of

COLUMNS = ("image", "rank", "class", "name", "probability", "error")
"""Of the CSV: a row per image and class, and a row per image without an answer."""
FAULTS = 5
"""Images without an answer that the error names."""


def print_predictions(settings: Predict) -> None:
    """Print a table, write the CSV, and raise a ValueError that names the images without an answer."""
    if settings.csv is not None:
        destination(settings.csv)
    reading = {name: getattr(settings, name) for name in ("mean", "std", "size", "crop_pct", "interpolation")}
    answers = predict_source(
        settings.source,
        settings.files,
        top=settings.top,
        engine=settings.engine,
        network=settings.network,
        **reading,
    )
    if answers.answers:
        print_table(_table(answers))
    if settings.csv is not None:
        write_whole(settings.csv, _csv(answers))
    if answers.faults:
        count = len(answers.answers) + len(answers.faults)
        faults = some_of([f"{image}: {why}" for image, why in answers.faults.items()], FAULTS, "; ")
        raise ValueError(f"{len(answers.faults)} of {count} without an answer: {faults}")


def _rows(answers: Answers) -> list[tuple[str, int, int, str, float]]:
    """(image, rank from 1, class, its name, probability)"""
    names = answers.names
    return [
        (answer.image, rank, number, "" if names is None else names[number], share)
        for answer in answers.answers
        for rank, (number, share) in enumerate(zip(answer.classes, answer.probabilities, strict=True), 1)
    ]


def _table(answers: Answers) -> Table:
    table = Table("image", "class", "probability, %")
    table.columns[2].justify = "right"
    for image, rank, number, name, share in _rows(answers):
        table.add_row(image if rank == 1 else "", name or str(number), f"{100 * share:.2f}")
    return table


def _csv(answers: Answers) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows((*row[:4], f"{row[4]:.6f}", "") for row in _rows(answers))
    writer.writerows((image, "", "", "", "", why) for image, why in answers.faults.items())
    return text.getvalue()
