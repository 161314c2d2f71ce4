"""The arms of a study: recipes on equal terms, trained with several seeds, each run once, and what came of them."""

import dataclasses
import hashlib
import json
import math
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from typing import Any

from spequant.app.recipes import RECIPES, Recipe, run
from spequant.app.recipes.build import with_seed
from spequant.app.recipes.folder import DIVERGED, ENVIRONMENT, METRICS, RECIPE, RESULT, main_figure, read_result
from spequant.app.recipes.schema import ELSEWHERE, FOLDER, differences, from_json, to_json
from spequant.app.studies.compare import deviation, paired
from spequant.app.studies.page import Report, Row
from spequant.app.studies.side_by_side import Job, all_finished, side_by_side, threads_each
from spequant.app.terminal import Terminal

RETRAIN = "Retrain"
WEIGHTS = (("network", "weights"), ("method", "teacher"))
"""Fields of a recipe that name weights to start from, or to learn from."""


@dataclass(frozen=True)
class Arm:
    """group: of arms that are compared with each other, e.g. a network. base: the recipe of the catalogue that `recipe`
    is made of. paper: the published figure, or None. note: what a reader has to know of this row. changes: fields
    beside the method's that it may have otherwise than its group's first arm, all of a part's where one ends in a
    point. more: columns of its own."""

    group: str
    label: str
    base: str
    recipe: Recipe
    paper: float | None = None
    note: str = ""
    changes: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


def chosen(arms: Sequence[Arm], patterns: Sequence[str]) -> list[Arm]:
    """Those whose "GROUP/LABEL" matches one of `patterns`; none given: all. ValueError: a pattern without a match."""
    for pattern in patterns:
        if not any(fnmatchcase(f"{a.group}/{a.label}", pattern) for a in arms):
            names = ", ".join(f"{a.group}/{a.label}" for a in arms)
            raise ValueError(f"only has {pattern!r}, which matches no arm; there are {names}")
    return [a for a in arms if not patterns or any(fnmatchcase(f"{a.group}/{a.label}", p) for p in patterns)]


def digest(recipe: Recipe, runs: Path) -> str:
    """Of all fields that say what is trained: runs of one digest are one run. Weights of a run below `runs`, and images
    beside them, count by their name, so that the folder of a study may be moved, or its path be written otherwise."""
    content = json.loads(to_json(replace(recipe, name="")))
    for name in ELSEWHERE:
        part, field = name.split(".")
        del content[part][field]
    for part, field in WEIGHTS:
        content[part][field] = _place(content[part][field], runs)
    if recipe.data.name == FOLDER:  # whose root is the data set; of others it says where the set lies
        content["data"]["root"] = _place(recipe.data.root or os.environ.get("SPEQUANT_DATA"), runs.parent)
    return hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=5).hexdigest()


def _place(path: str | Path | None, folder: Path) -> str | None:
    """The name of what lies in `folder`, the whole path of what does not."""
    if path is None:
        return None
    whole = Path(path).resolve()
    return whole.name if whole.parent == folder.resolve() else str(whole)


def folder_of(recipe: Recipe, runs: Path) -> Path:
    """Where below `runs` the run of `recipe` is: equal recipes have one folder."""
    return runs / f"{recipe.name}-{digest(recipe, runs)}"


def carry_out(recipe: Recipe, runs: Path) -> tuple[dict[str, Any], Path]:
    """(result, folder) of `recipe` below `runs`: trained, gone on with, or read where it is finished.
    FloatingPointError: it diverges, or has done so before."""
    folder = folder_of(recipe, runs)
    if (folder / RESULT).exists():
        return read_result(folder), folder
    if (folder / DIVERGED).exists():
        raise FloatingPointError(f"{folder} has diverged: {reason(folder)}; remove it to train it again")
    with Terminal(folder.name) as reporter:
        return run(recipe, folder, reporter, resume=True), folder


def reason(folder: Path) -> str:
    """Why the run in `folder` diverged."""
    return (folder / DIVERGED).read_text().strip()


def train_at_once(recipes: Sequence[Recipe], runs: Path, at_once: int) -> None:
    """Those that are not finished, so many at a time, in processes of their own; equal ones once. `carry_out` finds
    them done, or diverged. ChildProcessError: some did neither; the others did."""
    jobs = {}
    for recipe in recipes:
        folder = folder_of(recipe, runs)
        words = shlex.split(command_of(recipe.name, recipe))[1:]
        threads = threads_each(at_once) if recipe.train.threads is None else []
        if not _ended(folder):
            jobs[folder] = Job(recipe.name, folder, (*words, *threads, "--out", str(folder), "--resume"))
    codes = side_by_side(list(jobs.values()), at_once)
    all_finished(list(jobs.values()), [0 if _ended(job) else code for job, code in zip(jobs, codes, strict=True)])


def _ended(folder: Path) -> bool:
    return (folder / RESULT).exists() or (folder / DIVERGED).exists()


def command_of(base: str, recipe: Recipe, out: Path | None = None) -> str:
    """The `spequant train` that carries out `recipe`, by the fields in which it differs from `base`. out: where to;
    None: where `train` puts it."""
    words = ["spequant", "train", base]
    start = dataclasses.asdict(RECIPES[base]())
    for part, fields in dataclasses.asdict(recipe).items():
        if isinstance(fields, dict):
            words += options(fields, start[part], f"{part}.")
    return shlex.join(words if out is None else [*words, "--out", str(out)])


def row_command(arm: Arm, seed: int, folder: Path) -> str:
    """The `spequant train` of `arm` with `seed`, into the folder where it is."""
    return command_of(arm.base, with_seed(arm.recipe, seed), folder)


def options(values: Mapping[str, Any], defaults: Mapping[str, Any], part: str = "") -> list[str]:
    """The words of a command line that set `values` where they are not `defaults`."""
    words = []
    for name, value in values.items():
        if value == defaults[name]:
            continue
        option = name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{part}{option}" if value else f"--{part}no-{option}")
        else:
            words += [f"--{part}{option}", *map(str, value if isinstance(value, tuple) else (value,))]
    return words


def train_arms(
    arms: Sequence[Arm], seeds: Sequence[int], runs: Path, at_once: int = 1
) -> list[dict[int, tuple[dict[str, Any], Path]]]:
    """{seed: (result, folder)} of each arm, the result empty where the run diverged. All arms of a seed before the next
    one, so that what is there is paired."""
    if at_once > 1:
        train_at_once([with_seed(arm.recipe, seed) for seed in seeds for arm in arms], runs, at_once)
    done: list[dict[int, tuple[dict[str, Any], Path]]] = [{} for _ in arms]
    for seed in seeds:
        for arm, found in zip(arms, done, strict=True):
            recipe = with_seed(arm.recipe, seed)
            try:
                found[seed] = carry_out(recipe, runs)
            except FloatingPointError:
                found[seed] = {}, folder_of(recipe, runs)
    return done


def arms_report(
    title: str,
    about: str,
    arms: Sequence[Arm],
    done: Sequence[Mapping[int, tuple[dict[str, Any], Path]]],
    against: Sequence[str] = (),
) -> Report:
    """A row an arm: mean, deviation and paired difference to its group's first arm, Retrain, and to those that
    `against` labels. FloatingPointError: every run diverged."""
    results = [{seed: result for seed, (result, _) in found.items() if result} for found in done]
    names = [name for found in results for result in found.values() for name in result]
    if not names:
        raise FloatingPointError(f"every run of {title!r} diverged: {reason(next(iter(done[0].values()))[1])}")
    figure = main_figure(name for name in names if name.startswith("test_"))
    apart = figure.replace("test_", "held_out_")
    values = [{seed: float(result[figure]) for seed, result in found.items()} for found in results]
    rows: list[Row] = []
    for arm, found, own, ran in zip(arms, results, values, done, strict=True):
        numbers = list(own.values())
        held = [result[apart] for result in found.values() if apart in result]
        lost = [str(seed) for seed, (result, _) in ran.items() if not result]
        notes = [arm.note] * bool(arm.note) + [f"diverged: seed {', '.join(lost)}"] * bool(lost)
        rows.append(
            {
                "group": arm.group,
                "arm": arm.label,
                "epochs": arm.recipe.train.epochs,
                figure.replace("_", " "): _mean(numbers),
                "deviation": deviation(numbers),
                "seeds": len(numbers),
                **_differences(arm, own, arms, values, against),
                "held out": mean(held) if held else None,
                **arm.more,
                "paper": arm.paper,
                "seconds a run": _mean([float(result["seconds"]) for result in found.values()]),
                "note": "; ".join(notes),
                "command": row_command(arm, *next((seed, folder) for seed, (_, folder) in ran.items())),
            }
        )
    rows = same_columns(rows)
    return Report(title, about, rows, lambda figure: _draw(figure, rows), facts_of(folders_of(done)))


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else math.nan


def _differences(
    arm: Arm,
    own: Mapping[int, float],
    arms: Sequence[Arm],
    values: Sequence[Mapping[int, float]],
    against: Sequence[str],
) -> dict[str, float | None]:
    """Columns of `arm`'s paired differences to its group's first one, and to those that `against` labels."""
    group = {a.label: found for a, found in zip(arms, values, strict=True) if a.group == arm.group}
    columns: dict[str, float | None] = {}
    for label in (next(iter(group)), *against):
        gap, half, _ = paired(group[label], own)
        title = "+- (95 %)" if not columns else f"+- to {label}"
        columns |= {f"minus {label}": None, title: None} if arm.label == label else {f"minus {label}": gap, title: half}
    return columns


def same_columns(rows: Sequence[Row]) -> list[Row]:
    """Every row with the columns of all, in the order of their first appearance."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def over_seeds(title: str, own: Mapping[int, float], against: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Columns: the mean of a figure {seed: value}, its deviation, and its paired differences to others by name, with
    their 95 % intervals where there are several seeds."""
    columns = {title: mean(own.values())}
    spread = len(own) > 1
    if spread:
        columns[f"{title}, deviation"] = deviation(list(own.values()))
    for name, other in against.items():
        gap, half, _ = paired(other, own)
        columns |= {f"{title}, minus {name}": gap} | ({f"{title}, +- to {name} (95 %)": half} if spread else {})
    return columns


def folders_of(done: Sequence[Mapping[int, tuple[dict[str, Any], Path]]]) -> list[Path]:
    """Of all runs of arms, {seed: (result, folder)} each."""
    return [folder for found in done for _, folder in found.values()]


def facts_of(folders: Sequence[Path]) -> dict[str, Any]:
    """Machine, commit and versions of the runs in `folders` and of those that they start from, and a hash of each
    one's log."""
    every = list(dict.fromkeys(f for folder in folders for f in _line(folder)))
    facts = ran_on([start for f in every for start in json.loads((f / ENVIRONMENT).read_text())])
    for start in every:
        recipe = from_json((start / RECIPE).read_text())
        if start not in folders and recipe.name in RECIPES:  # and not of a smoke
            facts[f"command of {start.name}"] = command_of(recipe.name, recipe, start)
    hashes = {f.name: hashlib.sha256((f / METRICS).read_bytes()).hexdigest()[:16] for f in every}
    return {**facts, **{f"sha256 of {name}/{METRICS}": value for name, value in hashes.items()}}


def ran_on(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Machines, commits and versions of all `starts` of runs."""
    names = ("device", "commit", "python", "torch")
    return {name: ", ".join(sorted({str(start[name]) for start in starts})) for name in names}


def _line(folder: Path) -> list[Path]:
    """The run in `folder`, after those beside it that it starts or learns from."""
    content = json.loads((folder / RECIPE).read_text())
    names = [Path(path).name for part, field in WEIGHTS if (path := content[part][field]) is not None]
    before = [folder.parent / name for name in names if (folder.parent / name / METRICS).exists()]
    return [*(run for start in before for run in _line(start)), folder]


def _draw(figure: Any, rows: Sequence[Row]) -> None:
    """Means with their deviations, a panel a group, two side by side: their labels are long."""
    name = next(n for n in rows[0] if n.startswith("test "))
    groups = list(dict.fromkeys(row["group"] for row in rows))
    across = min(2, len(groups))
    down = math.ceil(len(groups) / across)
    width, height = figure.get_size_inches()
    figure.set_size_inches(width, height * down)
    for i, group in enumerate(groups):
        axes = figure.add_subplot(down, across, i + 1)
        own = [row for row in rows if row["group"] == group]
        spread = [0.0 if math.isnan(row["deviation"]) else row["deviation"] for row in own]
        axes.errorbar([row[name] for row in own], range(len(own)), xerr=spread, fmt="o", capsize=3)
        axes.set_yticks(range(len(own)), [row["arm"] for row in own])
        axes.invert_yaxis()
        axes.set_title(group, fontsize=10)
        axes.set_xlabel(name + ", %")
        axes.grid(axis="x", alpha=0.3)


def equal_terms(arms: Sequence[Arm]) -> None:
    """ValueError unless the arms of a group share data, network, quantization and schedule, but for an arm's own
    `changes`."""
    for arm in arms:
        first = next(a for a in arms if a.group == arm.group)
        free = ("method.", "name ", *(field if field.endswith(".") else f"{field} " for field in arm.changes))
        other = [d for d in differences(arm.recipe, first.recipe) if not d.startswith(free)]
        if other:
            raise ValueError(f"{arm.group}/{arm.label} is not on equal terms with {first.label}: {'; '.join(other)}")
