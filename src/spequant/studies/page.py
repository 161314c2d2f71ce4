"""What a study found, as files: table.csv, table.md, figure.png and page.html, which needs no other file."""

import base64
import csv
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spequant.files import placed, write_whole

Row = Mapping[str, Any]
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td.number { text-align: right; }
td code { font-size: 12px; }
img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Report:
    """title, about: in words. rows: one table, every row with the same columns. draw: on a figure of matplotlib; None:
    no picture. facts: what it was measured with, a line each."""

    title: str
    about: str
    rows: Sequence[Row]
    draw: Callable[[Any], None] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def columns(self) -> list[str]:
        return list(self.rows[0]) if self.rows else []


def write_report(report: Report, folder: Path) -> None:
    """All four files into `folder`, each whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "table.csv", _csv(report))
    write_whole(folder / "table.md", _markdown(report))
    picture = None if report.draw is None else _picture(report.draw)
    if picture is not None:
        with placed(folder / "figure.png") as path:
            path.write_bytes(picture)
    write_whole(folder / "page.html", _page(report, picture))


def in_cell(value: Any) -> str:
    """A number with two digits behind the point, nothing for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _csv(report: Report) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, report.columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(report.rows)
    return text.getvalue()


def _markdown(report: Report) -> str:
    lines = [f"# {report.title}", "", report.about, ""]
    lines += ["| " + " | ".join(report.columns) + " |", "|" + "---|" * len(report.columns)]
    for row in report.rows:
        cells = [in_cell(row[name]).replace("|", "\\|") for name in report.columns]
        lines.append(
            "| " + " | ".join(f"`{c}`" if n == "command" else c for n, c in zip(row, cells, strict=True)) + " |"
        )
    if report.draw is not None:
        lines += ["", "![figure](figure.png)"]
    lines += ["", *(f"- {name}: {value}" for name, value in report.facts.items())]
    return "\n".join(lines) + "\n"


def _page(report: Report, picture: bytes | None) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in report.columns)
    body = "".join(
        "<tr>" + "".join(_cell(name, row[name]) for name in report.columns) + "</tr>\n" for row in report.rows
    )
    image = ""
    if picture is not None:
        data = base64.b64encode(picture).decode()
        image = f'<img alt="{html.escape(report.title)}" src="data:image/png;base64,{data}">'
    facts = "".join(f"<li>{html.escape(name)}: {html.escape(str(value))}</li>" for name, value in report.facts.items())
    title = html.escape(report.title)
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>{title}</title><link rel="icon" href="data:,"><style>{STYLE}</style></head>
<body>
<h1>{title}</h1>
<p>{html.escape(report.about)}</p>
<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>
{body}</tbody></table></div>
{image}
<ul>{facts}</ul>
</body>
</html>
"""


def _cell(name: str, value: Any) -> str:
    text = html.escape(in_cell(value))
    if name == "command":
        return f"<td><code>{text}</code></td>"
    return f'<td class="number">{text}</td>' if isinstance(value, int | float) else f"<td>{text}</td>"


def _picture(draw: Callable[[Any], None]) -> bytes:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()
