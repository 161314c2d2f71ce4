"""Arms of a study: which runs they are, trained once each, beside each other, diverged; and the rows made of them."""

import math
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.runs.folder import listing
from spequant.app.studies.arms import (
    Arm,
    Trained,
    arm_folder,
    arms_report,
    carry_out,
    chosen_arms,
    equal_terms,
    facts_of_runs,
    over_seeds,
    reason,
    recipe_digest,
    train_arms,
    train_at_once,
)
from spequant.app.studies.page import write_report
from spequant.app.studies.tables import CIFAR, IMAGENET, table4, table5
from spequant.app.studies.tiny import tiny
from spequant.app.train import parsed_train
from spequant.comparison.pictures import blank
from spequant.data import CIFAR10, Folder
from spequant.methods import Distill
from support.made_up_runs import Run, in_this_process, written


def short(folder: Path, images: int = 64) -> Recipe:
    """Retrain on a few digits, one epoch, from random weights."""
    recipe = RECIPES["digits-w2a2-retrain"]()
    data = replace(recipe.data, images=images)
    return replace(tiny(recipe, folder, 8), data=data, network=replace(recipe.network, weights=None))


def too_fast(recipe: Recipe) -> Recipe:
    return replace(recipe, train=replace(recipe.train, lr=1e30))


def arms_of(good: Recipe) -> list[Arm]:
    both = (("Retrain", good), ("too fast", too_fast(good)))
    return [Arm("g", label, good.name, recipe) for label, recipe in both]


def diverges_beside_the_other(tmp_path: Path, at_once: int) -> list[Arm]:
    """Of two arms: its row says so, and it is not tried again."""
    arms = arms_of(short(tmp_path))
    done = train_arms(arms, [0, 1], tmp_path / "runs", at_once)
    assert [[bool(result) for result, _ in arm.runs.values()] for arm in done] == [[True, True], [False, False]]
    report = arms_report("t", "a", done)
    assert [(row["seeds"], row["note"]) for row in report.rows] == [(2, ""), (0, "diverged: seed 0, 1")]
    write_report(report, tmp_path, "t")
    folder = done[1].folders[0]
    assert "not finite at epoch 1" in reason(folder)
    assert {row["run"]: row["state"] for row in listing(tmp_path / "runs")}[str(folder)] == "diverged"
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert train_arms(arms, [0, 1], tmp_path / "runs", at_once) == done
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(FloatingPointError, match=r"every run of 't' diverged: .*not finite"):
        arms_report("t", "a", done[1:])
    return arms


@pytest.mark.slow
def test_a_run_that_diverges_is_a_row_that_says_so(tmp_path):
    _, bad = diverges_beside_the_other(tmp_path, 1)
    again = bad.recipe.with_seed(0)
    (arm_folder(again, tmp_path / "runs") / "diverged.txt").unlink()
    with pytest.raises(FloatingPointError, match="not finite"):
        carry_out(again, tmp_path / "runs")
    assert (arm_folder(again, tmp_path / "runs") / "diverged.txt").exists()


@pytest.mark.slow
def test_a_run_that_diverges_in_a_process_of_its_own(tmp_path):
    diverges_beside_the_other(tmp_path, 2)


def test_runs_at_once_are_told_from_the_ones_that_failed(tmp_path, monkeypatch):
    """By what is in their folders: here each command is carried out in this process, nothing is trained."""
    run = Run(lambda recipe: math.nan if recipe.train.lr == 1e30 else 70.0)
    monkeypatch.setattr("spequant.app.studies.arms.run", run)
    monkeypatch.setattr("spequant.app.train.run", run)
    monkeypatch.setattr("spequant.app.studies.arms.side_by_side", in_this_process)
    arms, runs = arms_of(short(tmp_path)), tmp_path / "runs"
    done = train_arms(arms, [0, 1], runs, 2)
    folders = [arm_folder(arm.recipe.with_seed(seed), runs) for seed in (0, 1) for arm in arms]
    assert run.trained == folders  # what is asked for is what the commands say
    assert [[bool(result) for result, _ in arm.runs.values()] for arm in done] == [[True, True], [False, False]]
    assert train_arms(arms, [0, 1], runs, 2) == done and run.trained == folders  # nor is it tried again


def fails_beside_another(tmp_path: Path) -> None:
    good = short(tmp_path)
    bad = replace(good, network=replace(good.network, weights=tmp_path / "absent"))
    with pytest.raises(ChildProcessError, match=r"digits-w2a2-retrain-\w+ \(exit 1\)"):
        train_at_once([bad, good, good], tmp_path / "runs", 2)
    assert [p.parent for p in tmp_path.rglob("result.json")] == [arm_folder(good, tmp_path / "runs")]


def test_a_run_at_once_that_fails_costs_no_other(tmp_path, monkeypatch):
    monkeypatch.setattr("spequant.app.studies.arms.side_by_side", in_this_process)
    fails_beside_another(tmp_path)


@pytest.mark.slow
def test_a_process_that_fails_costs_no_other(tmp_path):
    fails_beside_another(tmp_path)


def test_arms_that_differ_in_more_than_they_say_are_refused():
    arms = [a for family in CIFAR[:2] for a in table4(family, lambda r: r)]
    equal_terms(arms)
    for arm in (a for a in arms if a.label != "Retrain"):  # whatever its note says
        other = replace(arm, recipe=replace(arm.recipe, train=replace(arm.recipe.train, lr=1.0)))
        first = next(a for a in arms if a.group == arm.group)
        with pytest.raises(ValueError, match=r"equal terms with Retrain: .*train\.lr is 1\.0"):
            equal_terms([first, other])
    assert chosen_arms(arms, ["*CIFAR-10/SPEQ"]) == [a for a in arms if a.label == "SPEQ"]
    with pytest.raises(ValueError, match=r"only has 'x'.*ResNet-20, CIFAR-10/SPEQ,"):
        chosen_arms(arms, ["x"])


def test_a_digest_is_of_what_is_trained(tmp_path):
    recipe, runs = replace(RECIPES["digits-w2a2-speq"](), method=Distill.Settings()), tmp_path / "study" / "runs"

    def of(runs, **changes):
        return recipe_digest(replace(recipe, **changes), runs)

    assert of(runs, name="other", train=replace(recipe.train, threads=1)) == of(runs)
    assert of(runs, train=replace(recipe.train, seed=1)) != of(runs)
    for part, field in (("network", "weights"), ("method", "teacher")):
        found = {
            of(where / "runs", **{part: replace(getattr(recipe, part), **{field: where / "runs" / "float"})})
            for where in (tmp_path / "study", tmp_path / "moved", tmp_path / "moved" / ".." / "study")
        }
        assert len(found) == 1
        elsewhere = of(runs, **{part: replace(getattr(recipe, part), **{field: tmp_path / "float"})})
        assert elsewhere not in found | {of(runs)}
    assert of(runs, data=CIFAR10(root=tmp_path)) == of(runs, data=CIFAR10())  # where a set of that name lies
    folders = [tmp_path / "imagenet", tmp_path / "flowers", tmp_path / "study" / "images"]
    data = [Folder(root=root) for root in folders]
    assert len({of(runs, data=d) for d in data}) == 3  # each another data set
    moved = replace(data[2], root=tmp_path / "moved" / "images")
    assert of(tmp_path / "moved" / "runs", data=moved) == of(runs, data=data[2])


def test_a_folder_without_a_root_is_the_environments(tmp_path, monkeypatch):
    recipe = RECIPES["digits-w2a2-speq"]()
    recipe, found = replace(recipe, data=Folder()), set()
    for name in ("a", "b"):
        monkeypatch.setenv("SPEQUANT_DATA", str(tmp_path / name))
        found.add(recipe_digest(recipe, tmp_path / "runs"))
        assert (
            recipe_digest(replace(recipe, data=replace(recipe.data, root=tmp_path / name)), tmp_path / "runs") in found
        )
    assert len(found) == 2


def test_a_page_names_the_runs_that_its_own_start_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, floating = Path("study/runs"), RECIPES["digits-float"]()
    floating = replace(floating, train=replace(floating.train, epochs=3))
    start = written(arm_folder(floating, runs), floating, "aaa")
    recipe = RECIPES["digits-w2a2-speq"]()
    recipe = replace(recipe, network=replace(recipe.network, weights=start))
    run = written(arm_folder(recipe, runs), recipe, "bbb", "ccc")  # which went on
    facts = facts_of_runs([run])
    assert facts["commit"] == "aaa, bbb, ccc"
    words = shlex.split(facts[f"command of {start.name}"])
    again = parsed_train(words[2], words[3:])
    assert (again.recipe, again.out) == (floating, start)
    assert [name for name in facts if "sha256" in name] == [f"sha256 of {f.name}/metrics.jsonl" for f in (start, run)]


def test_rows_have_means_deviations_and_paired_differences(tmp_path):
    """Against figures worked out by hand: two seeds, t = 12.706205."""
    folder = written(tmp_path / "run", RECIPES["digits-w2a2-speq"]())

    def found(*accuracies):
        return {seed: ({"test_accuracy": a, "seconds": 2.0 + seed}, folder) for seed, a in enumerate(accuracies)}

    recipe = RECIPES["digits-w2a2-speq"]()
    arms = [Arm("g", label, recipe.name, recipe, paper=71.0) for label in ("Retrain", "SPEQ")]
    done = [Trained(arms[0], found(70.0, 72.0)), Trained(arms[1], found(71.0, 76.0))]
    report = arms_report("t", "a", done, ["SPEQ"])
    first, second = report.rows
    assert (first["test accuracy"], first["seeds"], first["paper"], first["seconds per run"]) == (71.0, 2, 71.0, 2.5)
    assert first["deviation"] == pytest.approx(2**0.5) and first["minus Retrain"] is None
    assert (first["minus SPEQ"], second["minus Retrain"], second["minus SPEQ"]) == (-2.5, 2.5, None)
    half = 12.706205 * 1.5  # differences of 1 and 4: deviation 3 / sqrt 2, over sqrt 2
    assert second["+- (95 %)"] == pytest.approx(half) == pytest.approx(first["+- to SPEQ"])
    columns = over_seeds("x", {0: 1.0, 1: 3.0}, {"it": {0: 0.0, 1: -1.0}})
    assert columns == {
        **{"x": 2.0, "x, deviation": pytest.approx(2**0.5), "x, minus it": 2.5},
        "x, +- to it (95 %)": pytest.approx(half),
    }
    assert over_seeds("x", {0: 1.0}, {"it": {0: 0.5}}) == {"x": 1.0, "x, minus it": 0.5}


def test_a_difference_of_one_seed_has_no_interval(tmp_path):
    recipe = RECIPES["digits-w2a2-speq"]()

    def found(accuracy):
        return {0: ({"test_accuracy": accuracy, "seconds": 2.0}, written(tmp_path / str(accuracy), recipe))}

    arms = [Arm("g", label, "digits-w2a2-speq", recipe) for label in ("Retrain", "SPEQ")]
    report = arms_report("t", "a", [Trained(arms[0], found(90.0)), Trained(arms[1], found(91.0))])
    assert report.rows[1]["minus Retrain"] == 1.0 and math.isnan(report.rows[1]["+- (95 %)"])
    write_report(report, tmp_path, "a")
    assert [shlex.split(row["command"])[-2:] for row in report.rows] == [
        ["--out", str(tmp_path / accuracy)] for accuracy in ("90.0", "91.0")
    ]
    assert "| 1.00 |  |" in (tmp_path / "a.md").read_text()
    assert "sha256 of 90.0/metrics.jsonl" in report.facts


@pytest.mark.parametrize(("families", "table", "panels"), [(CIFAR, table4, 16), (IMAGENET, table5, 8)])
def test_a_picture_of_many_networks_has_room_for_each(families, table, panels, tmp_path):
    folder = written(tmp_path / "run", RECIPES["digits-w2a2-speq"]())
    arms = [a for family in families for a in table(family, lambda recipe: recipe)]
    done = [Trained(a, {0: ({"test_accuracy": 70.0 + i / 7, "seconds": 2.0}, folder)}) for i, a in enumerate(arms)]
    figure = blank(9, 4.5)
    arms_report("t", "a", done).draw(figure)
    figure.canvas.draw()  # warns, which is an error here, where labels leave a panel nothing
    assert len(figure.axes) == panels
    for axes in figure.axes:
        assert min(axes.get_window_extent().size) > 150  # of 900 pixels across
        least, most = axes.get_tightbbox().extents.reshape(2, 2)
        assert (least >= -1).all() and (most <= figure.bbox.size + 1).all()  # to a pixel
