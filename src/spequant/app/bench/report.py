"""What the commands bench train and bench infer print. Nothing is measured here."""

import platform
from collections.abc import Mapping

import torch
from rich.table import Table

from spequant.app.bench.infer import bench_infer
from spequant.app.bench.train import STEPS, StepKind, bench_train, in_full
from spequant.app.commands.bench import BenchTrain, Infer
from spequant.app.commands.screen import print_table
from spequant.app.terminal import Terminal
from spequant.files import destination, write_json


def print_bench_train(settings: BenchTrain, kinds: Mapping[str, StepKind] = STEPS) -> None:
    """Measure training steps; print a table and, where the settings ask for it, write the rows as JSON.

    Args:
        settings: what is measured.
        kinds: what the rows train, by their names; the first one is "float".
    """
    settings = in_full(settings)
    if settings.json is not None:
        destination(settings.json)
    with Terminal("bench train") as reporter:
        rows = bench_train(settings, reporter, kinds)
    table = Table("step", "ms", "ratio to float", "peak, MiB", "graphs")
    times = {row["name"]: row["step_ms"] for row in rows}
    for row in rows:
        if row["name"] != "input":
            figures = (f"{row['step_ms']:.1f}", f"{row['ratio_to_float']:.2f}", f"{row['peak_mib']:.0f}")
            table.add_row(row["name"], *figures, str(row["graphs"]))
    print_table(table)
    for name, time in times.items():
        if together := times.get(f"{name} x{settings.at_once}"):
            gain = settings.at_once * time / together
            print(f"{name}: {settings.at_once} at once take {gain:.2f} times the steps a second of one")
    if "input" in times:
        share = 100 * rows[-1]["ratio_to_float"]
        print(f"input: {times['input']:.1f} ms per batch, {share:.1f} % of the float step")
    place = f"{rows[0]['device']}, {rows[0]['threads']} thread(s)"
    versions = f"torch {torch.__version__}, Python {platform.python_version()}"
    subject = f"{settings.network}, W{settings.bits}A{settings.bits}, batch {settings.batch}, {settings.dtype}"
    print(f"{subject}, {place}, {versions}")
    write_json(settings.json, rows)


def print_bench_infer(settings: Infer) -> None:
    """Measure inference; print a table and, where the settings ask for it, write the rows as JSON."""
    if settings.json is not None:
        destination(settings.json)
    with Terminal("bench infer") as reporter:
        rows = bench_infer(settings, reporter)
    table = Table("network", "engine", "ms", "times as fast as fp32", "file, bytes")
    for row in rows:
        times_as_fast = f"{row['times_faster_than_fp32']:.2f}"
        engine = f"{row['engine']} {row['version']}"
        table.add_row(row["name"], engine, f"{row['ms']:.2f}", times_as_fast, f"{row['file_bytes']:,}")
    print_table(table)
    sets = ", ".join(rows[0]["instruction_sets"]) or "not known"
    print(f"batch {settings.batch}, {settings.threads} thread(s), {settings.clock} time, instruction sets: {sets}")
    write_json(settings.json, rows)
