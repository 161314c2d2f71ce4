"""What a study found, as files: NAME.csv (NAME-TABLE.csv of further tables), NAME.md, NAME.png and NAME.html, a page
that needs no other file."""

import base64
import csv
import html
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from spequant.app.studies.pictures import blank
from spequant.files import make_folder, placed, write_whole

Row = Mapping[str, Any]
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 76rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
.number { text-align: right; }
td code { font-size: 12px; }
img { max-width: 100%; }
"""


@dataclass(frozen=True)
class Report:
    """title, about: in words. rows: one table, every row with the same columns. draw: on a figure of matplotlib; None:
    no picture. facts: what it was measured with, a line each. more: further tables by name."""

    title: str
    about: str
    rows: Sequence[Row]
    draw: Callable[[Any], None] | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    more: Mapping[str, Sequence[Row]] = field(default_factory=dict)

    @property
    def tables(self) -> dict[str, Sequence[Row]]:
        """All of them by name; the one that has none first."""
        return {"": self.rows, **self.more}


def write_report(report: Report, folder: Path, name: str) -> None:
    """All files into `folder`, each whole or not at all."""
    make_folder(folder)
    for title, rows in report.tables.items():
        write_whole(folder / f"{name}{f'-{title}' if title else ''}.csv".replace(" ", "-"), _csv(rows))
    picture = None if report.draw is None else _picture(report.draw)
    if picture is not None:
        with placed(folder / f"{name}.png") as path:
            path.write_bytes(picture)
    write_whole(folder / f"{name}.md", _markdown(report, f"{name}.png"))
    write_whole(folder / f"{name}.html", _page(report, picture))


def in_cell(value: Any) -> str:
    """A number with two digits behind the point, or two that count where it is less than .1 and more than rounding;
    nothing for what is not there."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if isinstance(value, float):
        return f"{value:.2g}" if 1e-6 < abs(value) < 0.0995 else f"{value:.2f}"
    return str(value)


def _columns(rows: Sequence[Row]) -> list[str]:
    return list(rows[0]) if rows else []


def _csv(rows: Sequence[Row]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: "" if value != value else value for name, value in row.items()} for row in rows)  # no NaN
    return text.getvalue()


def _markdown(report: Report, picture: str) -> str:
    lines = [f"# {report.title}", "", report.about]
    if report.draw is not None:
        lines += ["", f"![figure]({picture})"]
    for title, rows in report.tables.items():
        names = _columns(rows)
        lines += ["", *([f"## {title}", ""] if title else [])]
        lines += ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
        for row in rows:
            cells = [in_cell(row[name]).replace("|", "\\|") for name in names]
            shown = (f"`{c}`" if n == "command" else c for n, c in zip(names, cells, strict=True))
            lines.append("| " + " | ".join(shown) + " |")
    lines += ["", *(f"- {name}: {value}" for name, value in report.facts.items())]
    return "\n".join(lines) + "\n"


def _page(report: Report, picture: bytes | None) -> str:
    tables = "".join(_table(name, rows) for name, rows in report.tables.items())
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
{image}
{tables}<ul>{facts}</ul>
</body>
</html>
"""


def _table(title: str, rows: Sequence[Row]) -> str:
    head = "".join(_head(name, rows) for name in _columns(rows))
    body = "".join("<tr>" + "".join(_cell(name, row[name]) for name in _columns(rows)) + "</tr>\n" for row in rows)
    above = f"<h2>{html.escape(title)}</h2>\n" if title else ""
    return f'{above}<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}</tbody></table></div>\n'


def _head(name: str, rows: Sequence[Row]) -> str:
    numbers = any(isinstance(row[name], int | float) for row in rows)
    return f"<th{' class=number' if numbers else ''}>{html.escape(name)}</th>"


def _cell(name: str, value: Any) -> str:
    text = html.escape(in_cell(value))
    if name == "command":
        return f"<td><code>{text}</code></td>"
    return f'<td class="number">{text}</td>' if isinstance(value, int | float) else f"<td>{text}</td>"


def _picture(draw: Callable[[Any], None]) -> bytes:
    figure = blank(9, 4.5)
    draw(figure)
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=130)
    return data.getvalue()
