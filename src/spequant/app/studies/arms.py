"""The arms of a study: recipes on equal terms, trained with several seeds, each run once, and the table of results."""

import hashlib
import json
import math
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import mean
from typing import Any

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.command_line import options_of, recipe_named
from spequant.app.recipes.serial import ELSEWHERE, content_of, differences, flat, from_json
from spequant.app.runs import run
from spequant.app.runs.folder import DIVERGED_FILE, ENVIRONMENT, METRICS, RECIPE, RESULT, main_figure, read_result
from spequant.app.studies.page import Row, StudyReport
from spequant.app.studies.side_by_side import Job, all_finished, side_by_side, threads_each
from spequant.app.terminal import Terminal, title_of
from spequant.comparison import compare, deviation, paired
from spequant.data import Folder
from spequant.data.settings import data_folder as data_folder

BASELINE = "Retrain"
"""label of the arm that the others of its group are compared with"""


@dataclass(frozen=True)
class Arm:
    """One row of a study: a recipe that is compared with others.

    Args:
        group: arms of one group, e.g. of one network, are compared with each other.
        label: the arm's name in its group.
        base: name of the recipe that `recipe` is made from.
        recipe: what is trained.
        paper: the published figure, or None.
        note: what a reader has to know about this row.
        changes: fields, in addition to the method's, that may differ from the group's first arm; "quant." stands for
            all fields of that part.
        more: further columns of the row.
    """

    group: str
    label: str
    base: str
    recipe: Recipe
    paper: float | None = None
    note: str = ""
    changes: tuple[str, ...] = ()
    more: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """An arm with its runs.

    Args:
        arm: what was trained.
        runs: {seed: (result, folder)}; the result is empty where the run diverged.
    """

    arm: Arm
    runs: dict[int, tuple[dict[str, Any], Path]]

    @property
    def results(self) -> dict[int, dict[str, Any]]:
        """{seed: result} of the runs that did not diverge."""
        return {seed: result for seed, (result, _) in self.runs.items() if result}

    @property
    def folders(self) -> dict[int, Path]:
        """{seed: folder} of all runs."""
        return {seed: folder for seed, (_, folder) in self.runs.items()}

    @property
    def folder(self) -> Path:
        """The folder of the first run."""
        return next(iter(self.folders.values()))

    @property
    def command(self) -> str:
        """The `spequant train` of the first run, into the folder where it is."""
        return command_of(self.arm.base, self.arm.recipe.with_seed(next(iter(self.runs))), self.folder)

    def figures(self, name: str) -> dict[int, float]:
        """{seed: figure} of the results that have a figure of that name."""
        return {seed: float(result[name]) for seed, result in self.results.items() if name in result}


def chosen_arms(arms: Sequence[Arm], patterns: Sequence[str]) -> list[Arm]:
    """The arms whose "GROUP/LABEL" matches one of `patterns`; all where there are no patterns.

    Raises:
        ValueError: a pattern matches no arm.
    """
    for pattern in patterns:
        if not any(fnmatchcase(f"{a.group}/{a.label}", pattern) for a in arms):
            names = ", ".join(f"{a.group}/{a.label}" for a in arms)
            raise ValueError(f"only has {pattern!r}, which matches no arm; there are {names}")
    return [a for a in arms if not patterns or any(fnmatchcase(f"{a.group}/{a.label}", p) for p in patterns)]


def recipe_digest(recipe: Recipe, runs: Path) -> str:
    """A hash of all fields that determine what is trained: recipes with one digest have one run.

    Weights of a run below `runs`, and images next to that folder, count by their name. So the folder of a study may be
    moved, or its path be written in another way.
    """
    content = {name: v for name, v in flat(content_of(replace(recipe, name=""))) if name not in ELSEWHERE}
    content |= {name: _place(path, runs) for name, path in _weights(content).items()}
    if isinstance(recipe.data, Folder):  # its root is the data set; the root of other sets is only the place
        content["data.root"] = _place(data_folder(recipe.data.root), runs.parent)
    return hashlib.blake2b(json.dumps(content, sort_keys=True, default=str).encode(), digest_size=5).hexdigest()


def _weights(content: Mapping[str, Any]) -> dict[str, str | Path | None]:
    """The fields of a recipe that name weights to start from, or to learn from, or what these answered."""
    learned = ("teacher", "soft_labels")
    names = (n for n in content if n == "network.weights" or (n.startswith("method.") and n.endswith(learned)))
    return {name: content[name] for name in names}


def _place(path: str | Path | None, folder: Path) -> str | None:
    """The name of a path in `folder`, the full path elsewhere."""
    if path is None:
        return None
    resolved = Path(path).resolve()
    return resolved.name if resolved.parent == folder.resolve() else str(resolved)


def arm_folder(recipe: Recipe, runs: Path) -> Path:
    """The folder of the run of `recipe`, below `runs`: equal recipes have one folder."""
    return runs / f"{recipe.name}-{recipe_digest(recipe, runs)}"


def carry_out(
    recipe: Recipe, runs: Path, title: str = "", place: tuple[int, int] = (1, 1)
) -> tuple[dict[str, Any], Path]:
    """Train `recipe` in its folder below `runs`; go on with an interrupted run; only read a finished one.

    Args:
        recipe: what is trained.
        runs: the parent of the runs' folders.
        title: what lines about the run begin with; "": its recipe and seed.
        place: its number among the runs that are to be done, and how many these are.

    Returns:
        (result, folder).

    Raises:
        FloatingPointError: the run diverges, or has diverged before.
    """
    folder = arm_folder(recipe, runs)
    if (folder / RESULT).exists():
        return read_result(folder), folder
    if (folder / DIVERGED_FILE).exists():
        raise FloatingPointError(f"{folder} has diverged: {reason(folder)}; remove it to train it again")
    with Terminal(title or title_of(recipe.name, recipe.train.seed), *place) as reporter:
        return run(recipe, folder, reporter, resume=True), folder


def reason(folder: Path) -> str:
    """Why the run in `folder` diverged."""
    return (folder / DIVERGED_FILE).read_text().strip()


def train_at_once(recipes: Sequence[Recipe], runs: Path, at_once: int, titles: Sequence[str] = ()) -> None:
    """Train the recipes that are not finished, `at_once` at the same time, each in its own process; equal ones once.

    `carry_out` then finds their results.

    Args:
        recipes: what is trained.
        runs: the parent of the runs' folders.
        at_once: number of runs at the same time.
        titles: what lines about each run begin with; none: its recipe and seed.

    Raises:
        ChildProcessError: some neither finished nor diverged; the others did.
    """
    jobs = {}
    for recipe, title in zip(recipes, titles or [title_of(r.name, r.train.seed) for r in recipes], strict=True):
        folder = arm_folder(recipe, runs)
        words = shlex.split(command_of(recipe.name, recipe))[1:]
        threads = threads_each(at_once) if recipe.train.threads is None else []
        if not _ended(folder):
            jobs[folder] = Job(recipe.name, folder, (*words, *threads, "--out", str(folder), "--resume"), title)
    codes = side_by_side(list(jobs.values()), at_once)
    all_finished(list(jobs.values()), [0 if _ended(job) else code for job, code in zip(jobs, codes, strict=True)])


def _ended(folder: Path) -> bool:
    return (folder / RESULT).exists() or (folder / DIVERGED_FILE).exists()


def command_of(base: str, recipe: Recipe, out: Path | None = None) -> str:
    """The `spequant train` that carries out `recipe`, by the fields in which it differs from the recipe `base`.

    Args:
        base: name of a recipe (`recipe_named`).
        recipe: what is trained.
        out: the run's folder; None: where `train` puts it.
    """
    words = ["spequant", "train", base, *options_of(recipe, recipe_named(base))]
    return shlex.join(words if out is None else [*words, "--out", str(out)])


def train_arms(arms: Sequence[Arm], seeds: Sequence[int], runs: Path, at_once: int = 1) -> list[Trained]:
    """Train each arm with each seed, in folders below `runs`, `at_once` runs at the same time.

    All arms of a seed come before the next seed, so that an interrupted study has pairs.
    """
    recipes = {(i, seed): arm.recipe.with_seed(seed) for seed in seeds for i, arm in enumerate(arms)}
    titles = {(i, seed): title_of(f"{arms[i].group}/{arms[i].label}", seed) for i, seed in recipes}
    if at_once > 1:
        train_at_once(list(recipes.values()), runs, at_once, list(titles.values()))
    folders = {key: arm_folder(recipe, runs) for key, recipe in recipes.items()}
    ahead = [folder for folder in dict.fromkeys(folders.values()) if not _ended(folder)]
    trained = [Trained(arm, {}) for arm in arms]
    for (i, seed), recipe in recipes.items():
        folder = folders[i, seed]
        place = (ahead.index(folder) + 1, len(ahead)) if folder in ahead else (1, 1)
        try:
            trained[i].runs[seed] = carry_out(recipe, runs, titles[i, seed], place)
        except FloatingPointError:
            trained[i].runs[seed] = {}, folder
    return trained


def arms_report(title: str, about: str, arms: Sequence[Trained], against: Sequence[str] = ()) -> StudyReport:
    """A report with one row per arm: mean, deviation, and paired differences.

    Args:
        title: of the report.
        about: of the report.
        arms: with their runs.
        against: labels of arms; the rows have differences to these, too, besides those to their group's first arm.

    Raises:
        FloatingPointError: every run diverged.
    """
    columns = [name for arm in arms for result in arm.results.values() for name in result]
    if not columns:
        raise FloatingPointError(f"every run of {title!r} diverged: {reason(arms[0].folder)}")
    figure = main_figure(name for name in columns if name.startswith("test_"))
    rows: list[Row] = []
    for trained in arms:
        arm, values = trained.arm, list(trained.figures(figure).values())
        held_out = list(trained.figures(figure.replace("test_", "held_out_")).values())
        diverged = [str(seed) for seed in trained.runs if seed not in trained.results]
        notes = [arm.note] * bool(arm.note) + [f"diverged: seed {', '.join(diverged)}"] * bool(diverged)
        rows.append(
            {
                "group": arm.group,
                "arm": arm.label,
                "epochs": arm.recipe.train.epochs,
                figure.replace("_", " "): _mean(values),
                "deviation": deviation(values),
                "seeds": len(values),
                **_differences(trained, arms, figure, against),
                "held out": mean(held_out) if held_out else None,
                **arm.more,
                "paper": arm.paper,
                "seconds per run": _mean(list(trained.figures("seconds").values())),
                "note": "; ".join(notes),
                "command": trained.command,
            }
        )
    rows = same_columns(rows)
    return StudyReport(
        title, about, rows, lambda picture: _draw(picture, arms, figure), facts_of_runs(folders_of(arms))
    )


def _mean(values: Sequence[float]) -> float:
    return mean(values) if values else math.nan


def _differences(
    trained: Trained, arms: Sequence[Trained], figure: str, against: Sequence[str]
) -> dict[str, float | None]:
    """Columns of the paired differences of an arm to its group's first one, and to those that `against` labels."""
    group = {a.arm.label: a.figures(figure) for a in arms if a.arm.group == trained.arm.group}
    columns: dict[str, float | None] = {}
    for label in (next(iter(group)), *against):
        gap, half, _ = paired(group[label], trained.figures(figure))
        title, itself = f"+- to {label}" if columns else "+- (95 %)", trained.arm.label == label
        columns |= {f"minus {label}": None if itself else gap, title: None if itself else half}
    return columns


def same_columns(rows: Sequence[Row]) -> list[Row]:
    """`rows` with the columns of all, in the order of their first appearance; None where a row has no value."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return [{name: row.get(name) for name in columns} for row in rows]


def over_seeds(title: str, values: Mapping[int, float], against: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Columns of a figure: its mean, its deviation, and its paired differences to others.

    Args:
        title: of the figure.
        values: {seed: value} of the figure.
        against: the same of others, by name.

    Returns:
        {column: value}; with deviation and 95 % intervals where there are several seeds.
    """
    columns = {title: mean(values.values())}
    spread = len(values) > 1
    if spread:
        columns[f"{title}, deviation"] = deviation(list(values.values()))
    for name, other in against.items():
        gap, half, _ = paired(other, values)
        columns |= {f"{title}, minus {name}": gap} | ({f"{title}, +- to {name} (95 %)": half} if spread else {})
    return columns


def folders_of(arms: Iterable[Trained]) -> list[Path]:
    """The folders of all runs of `arms`."""
    return [folder for arm in arms for folder in arm.folders.values()]


def facts_of_runs(folders: Sequence[Path]) -> dict[str, Any]:
    """Machine, commit and versions of the runs in `folders` and of the runs that they start from; hashes of logs."""
    every = list(dict.fromkeys(f for folder in folders for f in _line(folder)))
    facts = ran_on([start for f in every for start in json.loads((f / ENVIRONMENT).read_text())])
    for start in every:
        recipe = from_json((start / RECIPE).read_text())
        if start not in folders and recipe.name in RECIPES:  # and not of a smoke
            facts[f"command of {start.name}"] = command_of(recipe.name, recipe, start)
    hashes = {f.name: hashlib.sha256((f / METRICS).read_bytes()).hexdigest()[:16] for f in every}
    return {**facts, **{f"sha256 of {name}/{METRICS}": value for name, value in hashes.items()}}


def ran_on(starts: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Machines, commits and versions of `starts`, the entries of environment.json."""
    names = ("device", "commit", "python", "torch")
    return {name: ", ".join(sorted({str(start[name]) for start in starts})) for name in names}


def _line(folder: Path) -> list[Path]:
    """The run in `folder`, after the runs next to it that it starts or learns from."""
    weights = _weights(dict(flat(json.loads((folder / RECIPE).read_text()))))
    names = [Path(path).name for path in weights.values() if path is not None]
    before = [folder.parent / name for name in names if (folder.parent / name / METRICS).exists()]
    return [*(run for start in before for run in _line(start)), folder]


def _draw(figure: Any, arms: Sequence[Trained], name: str) -> None:
    """Draw each group's arms, one group below the other: seeds, means with intervals, differences to the first arm."""
    groups = list(dict.fromkeys(a.arm.group for a in arms))
    values = {g: {a.arm.label: a.figures(name) for a in arms if a.arm.group == g} for g in groups}
    lines = [2 + sum(1 for points in values[g].values() if points) for g in groups]
    figure.set_size_inches(9, 0.6 + 0.45 * sum(lines))
    panels = figure.subplots(len(groups), 2, squeeze=False, width_ratios=(3, 2), height_ratios=lines)
    for (left, right), group in zip(panels, groups, strict=True):
        drawn = {label: points for label, points in values[group].items() if points}
        missing = [label for label in values[group] if label not in drawn]
        left.set_title(f"{group}{'; all runs diverged: ' * bool(missing)}{', '.join(missing)}", fontsize=10, loc="left")
        if drawn:
            unit = "" if name.endswith("_error") else ", %"
            compare(drawn, figure=name.replace("_", " ") + unit, better="lower" if not unit else "higher").draw(
                left, right
            )


def equal_terms(arms: Sequence[Arm]) -> None:
    """Check that the arms of a group share data, network, quantization and schedule, apart from an arm's `changes`.

    Raises:
        ValueError: an arm differs from its group's first one in another field.
    """
    for arm in arms:
        first = next(a for a in arms if a.group == arm.group)
        changes = (field.removesuffix(".") for field in arm.changes)
        free = ("method.", "name ", *(field + end for field in changes for end in (" ", ".")))
        unequal = [d for d in differences(arm.recipe, first.recipe) if not d.startswith(free)]
        if unequal:
            raise ValueError(f"{arm.group}/{arm.label} is not on equal terms with {first.label}: {'; '.join(unequal)}")
