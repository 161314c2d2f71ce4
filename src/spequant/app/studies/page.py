"""What a study reports, as files: NAME.csv (NAME-TABLE.csv for each further table), NAME.md, NAME.png and NAME.html,
a page that needs no other file."""

import base64
import csv
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spequant.comparison.pictures import blank, save
from spequant.extras import needs
from spequant.files import make_folder, write_whole

Row = Mapping[str, Any]


@dataclass(frozen=True)
class StudyReport:
    """The content of a study's files.

    Args:
        title: the heading.
        about: what the figures are, in sentences.
        rows: the main table; every row has the same columns.
        draw: draws on a figure of matplotlib; None: there is no picture.
        facts: what the figures were measured with, one line each.
        more: further tables by name.
    """

    title: str
    about: str
    rows: Sequence[Row]
    draw: Callable[[Any], None] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, Sequence[Row]]:
        """All tables by name; the main one first, whose name is empty."""
        return {"": self.rows, **self.more}


def write_report(report: StudyReport, folder: Path, name: str) -> None:
    """Write all files of `report` into `folder`, each whole or not at all."""
    jinja = needs("jinja2", "report")
    pages = jinja.Environment(
        loader=jinja.FileSystemLoader(Path(__file__).parent),
        autoescape=jinja.select_autoescape(["html.jinja"]),
        undefined=jinja.StrictUndefined,
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {"cell": in_cell, "column": lambda rows, name: [row[name] for row in rows]}
    make_folder(folder)
    for title, rows in report.tables.items():
        write_whole(folder / f"{name}{f'-{title}' if title else ''}.csv".replace(" ", "-"), _csv(rows))
    picture = b""
    if report.draw is not None:
        figure = blank(9, 4.5)
        report.draw(figure)
        picture = save(figure, folder / f"{name}.png")
    for kind in ("md", "html"):
        page = pages.get_template(f"page.{kind}.jinja")
        text = page.render(report=report, name=name, picture=base64.b64encode(picture).decode())
        write_whole(folder / f"{name}.{kind}", text)


def in_cell(value: Any) -> str:
    """A value as a cell of a page shows it.

    A float has two digits behind the point, or two significant ones where it is less than 0.1 and more than rounding.
    None and NaN are an empty cell.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.2g}" if 1e-6 < abs(value) < 0.0995 else f"{value:.2f}"
    return str(value)


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)  # no NaN
    return text.getvalue()
