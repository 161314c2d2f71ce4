"""docs/results: small, traceable to logs, and every figure of a run in a page's table is the one in its CSV."""

import csv
import gzip
import math
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results"
INDEX = RESULTS / "README.md"
PAGES = sorted(page for page in RESULTS.glob("*.md") if page != INDEX)
WITH_RUNS = [page for page in PAGES if page.with_suffix(".csv").exists()]
SECTIONS = ("Question", "Answer", "Table", "Command", "What it does not show")
MAX_BYTES = 1_000_000
WITHOUT_LOGS = {"when", "newer-rivals"}
"""Pages whose runs came after commit 3752d3c: no log is in git, the curves are."""

Row = dict[str, str]
Seeds = dict[int, float]

COLUMN = {
    "test": "test_accuracy",
    "held out": "held_out_accuracy",
    "exact match": "test_exact_match",
    "F1": "test_f1",
    "loss on labels": "loss_on_labels",
    "seconds": "seconds",
}
FIGURE = re.compile(rf"({'|'.join(COLUMN)})(?:, (.+))?")
STATISTIC = re.compile(r"seed \d+|mean|deviation|minus .+|.+ minus it.*")
T975 = {2: 12.706205, 3: 4.302653, 5: 2.776445}
"""Student's t, 97.5 %, by the number of pairs"""


def _rows(page: Path) -> list[Row]:
    with page.with_suffix(".csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _section(page: Path, title: str) -> str:
    found = re.search(rf"^## {title}\n\n(.*?)(?=^## |\Z)", page.read_text(encoding="utf-8"), re.M | re.S)
    assert found, f"{page.name} has no section {title!r}"
    return found[1].strip()


def _cells(line: str) -> list[str]:
    return [cell.strip().strip("*") for cell in line.strip().strip("|").split("|")]


def _tables(page: Path) -> Iterator[tuple[str, list[str], list[list[str]]]]:
    """(heading above it, header, rows) of every table of `page`."""
    heading, lines = "", [*page.read_text(encoding="utf-8").splitlines(), ""]
    table: list[list[str]] = []
    for line in lines:
        if line.startswith("|"):
            table.append(_cells(line))
        elif table:
            yield heading, table[0], table[2:]
            table = []
        if line.startswith("#"):
            heading = line.lstrip("# ")


def _figure(header: str, first: str) -> tuple[str, str] | None:
    """(column of the CSV, statistic) of a header's cell, as "test, seed 0"; a table of one figure names it first."""
    if own := FIGURE.fullmatch(header):
        return COLUMN[own[1]], own[2] or "mean"
    of_table = next((name for name in COLUMN if first.startswith(name)), None)
    return (COLUMN[of_table], header) if of_table and STATISTIC.fullmatch(header) else None


def _seeds(rows: list[Row], heading: str, arm: str, column: str) -> Seeds:
    """{seed: figure} of `arm`, with the bits of a row as a prefix or without."""
    of_arm = [row for row in rows if row["arm"] == arm and row["group"] in ("", heading)]
    return {int(row["seed"]): float(row[column]) for row in of_arm if row[column]}


def _difference(plus: Seeds, minus: Seeds) -> tuple[float, float]:
    """(mean of the paired differences, half of their 95 % interval); no interval for one pair."""
    gaps = [plus[seed] - minus[seed] for seed in sorted(plus.keys() & minus.keys())]
    half = T975[len(gaps)] * stdev(gaps) / math.sqrt(len(gaps)) if len(gaps) > 1 else math.nan
    return mean(gaps), half


def _expected(statistic: str, own: Seeds, other: Seeds) -> list[float]:
    """The figures that a cell has to hold."""
    if statistic.startswith("seed "):
        return [own[int(statistic.removeprefix("seed "))]]
    if statistic == "mean":
        return [mean(own.values())]
    if statistic == "deviation":
        return [stdev(own.values())]
    gap = _difference(own, other) if statistic.startswith("minus ") else _difference(other, own)
    return [value for value in gap if not math.isnan(value)]


def _other(statistic: str, arm: str) -> str:
    """The arm that a difference is to: "minus Retrain" in a row "W2A2 SPEQ" is to "W2A2 Retrain"."""
    found = re.fullmatch(r"minus ([^,]+).*|(.+) minus it.*", statistic)
    bits = re.match(r"W\dA\d ", arm)
    return (bits[0] if bits else "") + (found[1] or found[2]) if found else ""


def _check(cell: str, expected: list[float], where: str) -> None:
    printed = cell.split(" +- ")
    assert len(printed) == len(expected), f"{where}: {cell!r}, expected {expected}"
    for word, value in zip(printed, expected, strict=True):
        decimals = len(word.partition(".")[2])
        assert abs(float(word) - value) <= 0.5 * 10**-decimals + 1e-6, f"{where}: {cell!r}, the runs give {value:.4f}"


def test_the_folder_stays_small():
    files = [path for path in RESULTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_page_has_every_section_and_stands_in_the_index_with_its_answer(page: Path):
    for title in SECTIONS:
        assert _section(page, title)
    rows = [line for line in INDEX.read_text(encoding="utf-8").splitlines() if f"({page.name}) |" in line]
    assert len(rows) == 1, f"the index has {len(rows)} rows of {page.name}"
    assert _cells(rows[0])[1] == _section(page, "Answer")


@pytest.mark.parametrize("page", WITH_RUNS, ids=lambda page: page.stem)
def test_every_run_names_its_log(page: Path):
    for row in _rows(page):
        assert re.fullmatch(r"[0-9a-f]{16}", row["sha256"]), row["run"]
        assert row["log"] == ("" if page.stem in WITHOUT_LOGS else f"docs/results/logs/{row['run']}.jsonl")
        assert row["digest"] == "" or row["run"].endswith(f"-{row['digest']}")
        assert row["commit"] and row["processor"] and float(row["seconds"]) > 0


def test_one_run_is_the_same_on_every_page():
    seen: dict[str, Row] = {}
    for page in WITH_RUNS:
        for row in _rows(page):
            fact = {name: value for name, value in row.items() if name not in ("group", "arm")}
            assert seen.setdefault(row["run"], fact) == fact, f"{page.stem}: {row['run']}"


def test_curves_are_of_the_runs_of_pages_and_of_all_of_them():
    with gzip.open(RESULTS / "curves.csv.gz", "rt", encoding="utf-8", newline="") as file:
        last = {row["run"]: row for row in csv.DictReader(file)}
    runs = {row["run"]: row for page in WITH_RUNS for row in _rows(page)}
    assert last.keys() == runs.keys()
    for name, row in runs.items():
        assert last[name]["epoch"] == row["epochs"], name
        assert float(last[name]["task"]) == pytest.approx(float(row["loss_on_labels"]), abs=1e-4), name


@pytest.mark.parametrize("page", WITH_RUNS, ids=lambda page: page.stem)
def test_tables_follow_from_the_runs(page: Path):
    """Means, deviations and paired differences, too. Rows without runs in the CSV follow from their own seeds."""
    rows = _rows(page)
    for heading, header, body in _tables(page):
        columns = {i: found for i, name in enumerate(header) if i and (found := _figure(name, header[0]))}
        seeds = {i: int(header[i].split()[1]) for i in columns if header[i].startswith("seed ")}
        in_table = {line[0]: {seed: float(line[i]) for i, seed in seeds.items() if line[i]} for line in body}
        for line in body:
            for i, (column, statistic) in columns.items():
                arm, other = line[0], _other(statistic, line[0])
                own = _seeds(rows, heading, arm, column) or in_table[arm]
                assert own, f"{page.stem}: {heading!r} has no runs of {arm!r}"
                if line[i]:
                    against = _seeds(rows, heading, other, column) or in_table.get(other, {})
                    _check(line[i], _expected(statistic, own, against), f"{page.stem}, {arm}, {header[i]}")


def _widths() -> dict[tuple[str, str, str], Row]:
    with (RESULTS / "widths-figures.csv").open(newline="", encoding="utf-8") as file:
        return {(row["network"], row["weights"], row["activations"]): row for row in csv.DictReader(file)}


@pytest.mark.parametrize(
    ("heading", "column"),
    [("Bounds held", "bounds_held"), ("Refitted: ranges and batch norm found anew", "refitted")],
)
def test_other_widths_follow_from_their_figures(heading: str, column: str):
    figures = _widths()
    (table,) = [(header, body) for found, header, body in _tables(RESULTS / "widths.md") if found == heading]
    for line in table[1]:
        for name, cell in zip(table[0][1:], line[1:], strict=True):
            bits, network = name.removeprefix("A").split(": ")
            assert float(cell) == float(figures[network, line[0].split()[0], bits][column]), (name, line[0])


def test_any_precision_follows_from_the_figures_of_widths():
    figures, page = _widths(), RESULTS / "any-precision.md"
    ((_, header, body),) = _tables(page)
    for line in body:
        bits = line[0].split()[0]
        for name, cell in zip(header[1:4], line[1:4], strict=True):
            assert float(cell) == float(figures[name.removeprefix("one network, "), "2", bits]["bounds_held"])
        trained = "Retrain" if bits == "2" else f"Retrain at A{bits}"
        assert _seeds(_rows(page), "", trained, "test_accuracy") == {0: float(line[4])}
