"""The command `compare`: finished runs as arms of `spequant.compare`, and the files that it writes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean
from typing import Any

from rich.table import Table

from spequant.app.commands.screen import print_table
from spequant.app.commands.studies import Compare
from spequant.app.recipes import Recipe
from spequant.app.recipes.distinctions import changes_in_words, distinctions
from spequant.app.recipes.serial import from_json
from spequant.app.runs.folder import RECIPE, RESULT, figures, main_figure, read_result, state_of
from spequant.comparison import Comparison, compare, students_t
from spequant.extras import needs
from spequant.files import destination, write_whole
from spequant.names import nearest

START_SETTINGS = ("network.weights", "method.teacher", "method.distill.teacher")
"""fields in which the runs of an arm may differ: each seed may have a float run of its own"""


@dataclass(frozen=True)
class FinishedRun:
    """A run with its result."""

    folder: Path
    recipe: Recipe
    result: Mapping[str, Any]


def check_seeds(seeds: Sequence[int]) -> None:
    """ValueError: `seeds` are no numbers from 0 on, each once."""
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise ValueError(f"seeds is {tuple(seeds)!r}; expected numbers from 0 on, each once, e.g. --seeds 0 1 2")


def print_comparison(settings: Compare) -> None:
    """Print the comparison and write the files that the settings name.

    Raises:
        FileNotFoundError: a folder holds no run, or there is no folder for a file.
        OSError: a file cannot be written.
        ValueError: no run is finished, a run is there twice, a run lacks the metric, or the picture is no .png.
    """
    writers: dict[str, Callable[[Comparison, Path], None]] = {
        "csv": lambda comparison, path: write_whole(path, comparison.csv()),
        "latex": lambda comparison, path: write_whole(path, comparison.latex()),
        "json": lambda comparison, path: write_whole(path, comparison.json()),
        "plot": lambda comparison, path: comparison.plot(path),
    }
    files = {kind: path for kind in writers if (path := getattr(settings, kind)) is not None}
    _check_files(files)
    runs, left_out = read_runs(settings.runs)
    arms = arms_of(runs)
    comparison = compared(arms, settings.metric)
    comparison = replace(comparison, notes=(*comparison.notes, *_other_starts(arms), *left_out))
    header, *rows = comparison.rows()
    table = Table(*header, "seconds per run")
    for row in rows:
        seconds = [run.result["seconds"] for run in arms[row[0]].values() if "seconds" in run.result]
        table.add_row(*row, f"{mean(seconds):.0f}" if seconds else "-")
    print_table(table)
    print(*comparison.notes, sep="\n", end="\n" * bool(comparison.notes))
    for kind, path in files.items():
        writers[kind](comparison, path)
        print(f"{kind}: {path}")


def _check_files(files: Mapping[str, Path]) -> None:
    """Refuse files that could not be written, before the work."""
    ends = {}
    for kind, path in files.items():
        end = destination(path).resolve()
        if end in ends and (end.is_file() or not end.exists()):
            raise ValueError(f"{kind} is {path}, which is the file of --{ends[end]} as well; expected one for each")
        ends[end] = kind
    if (plot := files.get("plot")) is not None:
        if plot.suffix.lower() != ".png":
            raise ValueError(f"plot is {plot}; expected a file that ends in .png")
        needs("matplotlib.figure", "report")
        students_t()


def read_runs(folders: Sequence[Path]) -> tuple[list[FinishedRun], list[str]]:
    """Read runs.

    Returns:
        The finished runs, and a sentence for each run without a result.

    Raises:
        FileNotFoundError: a folder holds no run.
        ValueError: there are no folders, none holds a finished run, or recipe or result are damaged.
    """
    if not folders:
        raise ValueError("compare takes the folders of finished runs, e.g. runs/a runs/a-seed1 runs/b runs/b-seed1")
    runs, left_out = [], []
    for folder in folders:
        if not (folder / RECIPE).is_file():
            raise FileNotFoundError(f"{folder / RECIPE} does not exist; expected the folder of a run")
        if not (folder / RESULT).is_file():
            left_out.append(f"left out: {folder}, which is {state_of(folder)} and has no {RESULT}")
            continue
        runs.append(FinishedRun(folder, from_json((folder / RECIPE).read_text()), read_result(folder)))
    if not runs:
        raise ValueError(f"no run is finished; {'; '.join(left_out)}")
    return runs, left_out


def arms_of(runs: Sequence[FinishedRun]) -> dict[str, dict[int, FinishedRun]]:
    """Return {arm: {seed: run}}, in the order of the runs.

    Raises:
        ValueError: two runs are of one recipe and one seed.
    """
    names = _names(runs, ("train.seed", *START_SETTINGS))
    seeds = [(name, run.recipe.train.seed) for name, run in zip(names, runs, strict=True)]
    again = {run.recipe.name for key, run in zip(seeds, runs, strict=True) if seeds.count(key) > 1}
    if again:  # where the start is all that tells two runs of one seed apart
        by_start = _names(runs, ("train.seed",))
        names = [b if run.recipe.name in again else a for a, b, run in zip(names, by_start, runs, strict=True)]
    arms: dict[str, dict[int, FinishedRun]] = {}
    for name, run in zip(names, runs, strict=True):
        other = arms.setdefault(name, {}).setdefault(run.recipe.train.seed, run)
        if other is not run:
            raise ValueError(
                f"{run.folder} and {other.folder} are runs of {name} with seed {run.recipe.train.seed}; expected one "
                "run of each seed: leave one out"
            )
    return arms


def _names(runs: Sequence[FinishedRun], besides: Sequence[str]) -> list[str]:
    """Return the name of each run's arm: its recipe's, and the fields that tell it from other runs of that name."""
    names = [run.recipe.name for run in runs]
    for name in set(names):
        places = [i for i, run in enumerate(runs) if run.recipe.name == name]
        for i, fields in zip(places, distinctions([runs[i].recipe for i in places], besides), strict=True):
            names[i] = f"{name} {changes_in_words(fields)}".strip()
    return names


def _other_starts(arms: Mapping[str, Mapping[int, FinishedRun]]) -> list[str]:
    """Return a sentence for each arm whose runs differ in more than the seed."""
    notes = []
    for name, arm in arms.items():
        fields = distinctions([run.recipe for run in arm.values()], ("train.seed",))[0]
        if fields:
            notes.append(f"the seeds of {name} differ in {', '.join(fields)}, too")
    return notes


def compared(arms: Mapping[str, Mapping[int, FinishedRun]], metric: str | None = None) -> Comparison:
    """Compare arms by a figure.

    Args:
        arms: {arm: {seed: run}}; the first one is the baseline.
        metric: name of the figure; of one in the test without "test_". None: `main_figure`.

    Raises:
        ValueError: a run does not have that figure.
    """
    runs = [run for arm in arms.values() for run in arm.values()]
    measured = {run.folder: [*figures(run.result, "test_"), *figures(run.result, "held_out_")] for run in runs}
    all_figures = list(dict.fromkeys(name for names in measured.values() for name in names))
    if not all_figures:
        raise ValueError(f"{runs[0].folder} has no figure; expected test_accuracy or another one in its {RESULT}")
    figure = main_figure(all_figures) if metric is None else metric if metric in all_figures else f"test_{metric}"
    if without := [str(run.folder) for run in runs if figure not in measured[run.folder]]:
        hint = "" if figure in all_figures else f" {nearest(str(metric), all_figures)};"
        raise ValueError(
            f"metric is {metric or figure!r}, not measured by {', '.join(without)};{hint} the runs have "
            f"{', '.join(all_figures)} (held_out_... where they are trained with --data.held-out)"
        )
    error = figure.endswith("_error")  # errors are in the unit of the targets, others in percent
    return compare(
        {name: {seed: float(run.result[figure]) for seed, run in arm.items()} for name, arm in arms.items()},
        figure=figure.replace("_", " ") + ("" if error else ", %"),
        digits=4 if error else 2,
        better="lower" if error else "higher",
    )
