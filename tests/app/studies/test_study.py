"""The command `study`: a study goes on where it stopped, its rows against known figures, what it refuses.

Studies whole, as they are: test_studies.py. Most runs here are made up, so that nothing is trained.
"""

import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import tyro

from spequant.app.cli import main
from spequant.app.recipes.serial import from_json
from spequant.app.runs import load_run
from spequant.app.studies.arms import arm_folder
from spequant.app.studies.page import StudyReport
from spequant.app.studies.study import STUDIES, run_study, study_command
from spequant.app.studies.tables import CIFAR
from spequant.app.studies.workshop import Study, Workshop, about
from spequant.app.train import parsed_train
from spequant.methods import SPEQ, JointBits, Retrain
from support.made_up_runs import Run, in_this_process
from support.study_files import SMALL, rows_of, smoke


@pytest.fixture
def made_up(monkeypatch) -> Run:
    """In place of training."""
    run = Run()
    monkeypatch.setattr("spequant.app.studies.arms.run", run)
    monkeypatch.setattr("spequant.app.train.run", run)
    return run


@pytest.mark.slow
def test_table2(tmp_path, monkeypatch):
    """With networks that are trained, resumed where one is lost, and moved."""
    monkeypatch.chdir(tmp_path)
    options = ("--seeds", "0", "--only", "*/Retrain", "*/cosine, stochastic*", *SMALL)
    rows = smoke("table2", Path("study"), *options)
    assert [row["arm"] for row in rows] == ["Retrain", "cosine, stochastic, u = .5"]
    assert [row["seeds"] for row in rows] == ["1", "1"] and rows[0]["minus Retrain"] == ""
    gap = float(rows[1]["test accuracy"]) - float(rows[0]["test accuracy"])
    assert float(rows[1]["minus Retrain"]) == gap
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert len(finished) == 3  # the float network, and two arms
    with pytest.raises(SystemExit, match=r"study exists; .*--resume.*--out"):
        main(["study", "table2", "--smoke", "--out", "study", *SMALL])
    lost = next(p.parent for p in finished if "float" not in p.parent.name)
    shutil.rmtree(lost)
    assert smoke("table2", Path("study"), *options, "--resume")
    again = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert set(again) == set(finished)  # the lost one was trained again under its name, the others were kept
    assert [p for p in again if again[p] != finished[p]] == [lost / "result.json"]
    command = shlex.split(rows[1]["command"])
    trained = parsed_train(command[2], command[3:])
    assert isinstance(trained.recipe.method, SPEQ.Settings) and trained.out == arm_folder(
        trained.recipe, Path("study/runs")
    )
    start = trained.recipe.network.weights
    assert f"sha256 of {start.name}/metrics.jsonl" in Path("study/table2.md").read_text()
    os.rename("study", "moved")
    assert smoke("table2", tmp_path / "moved", *options, "--resume")
    there = {p.relative_to("moved"): p.stat().st_mtime_ns for p in Path("moved").rglob("result.json")}
    assert there == {p.relative_to(tmp_path / "study"): t for p, t in again.items()}  # nothing was trained anew


def test_an_interrupted_study_goes_on(tmp_path, made_up):
    def stops(recipe):
        if len(made_up.trained) == 3:
            raise KeyboardInterrupt
        return 70.0

    made_up.accuracy = stops
    command = ["study", "table3", "--smoke", "--seeds", "0", "--out", str(tmp_path), *SMALL]
    command += ["--only", "*/Retrain", "*/SPEQ"]
    with pytest.raises(SystemExit) as stopped:
        main(command)
    assert stopped.value.code == 130 and not (tmp_path / "table3.csv").exists()
    before = list(made_up.trained)
    main([*command, "--resume"])
    assert made_up.trained[3:] == before[2:]  # the one that was under way, nothing else
    assert [row["arm"] for row in rows_of(tmp_path, "table3")] == ["Retrain", "SPEQ"]


def test_runs_at_once_are_the_runs_one_by_one(tmp_path, made_up, monkeypatch):
    """As far as the commands that train them go."""
    monkeypatch.setattr("spequant.app.studies.arms.side_by_side", in_this_process)
    (tmp_path / "of-ten-classes.th").touch()  # which made-up images of two do not start from
    options = ["--seeds", "0", "--threads", "1", "--weights", str(tmp_path / "of-ten-classes.th"), *SMALL]
    alone = smoke("table3", tmp_path / "alone", *options)
    both = smoke("table3", tmp_path / "both", *options, "--at-once", "2")
    own = [{name: row[name] for name in ("arm", "test accuracy", "held out", "minus Retrain")} for row in both]
    assert own == [{name: row[name] for name in own[0]} for row in alone] and len(own) == 11
    assert len({row["test accuracy"] for row in both}) == len(made_up.trained) / 2 - 1  # and the float network
    count = len(made_up.trained)
    assert both == smoke("table3", tmp_path / "both", *options, "--at-once", "2", "--resume")
    assert len(made_up.trained) == count


def test_table4_has_every_arm_on_the_networks_asked_for(tmp_path, made_up):
    rows = smoke("table4", tmp_path, "--seeds", "0", "--only", "VGG16*", "ResNet-20*")
    groups = {row["group"]: [r["arm"] for r in rows if r["group"] == row["group"]] for row in rows}
    assert list(groups) == [family.group + ours for family in CIFAR[:2] for ours in ("", ": ours, from abstracts")]
    assert len(groups["VGG16, CIFAR-10"]) == 19 and groups["VGG16, CIFAR-10: ours, from abstracts"][0] == "Retrain"
    first, *others = (r for r in rows if r["group"].startswith("ResNet-20") and r["arm"] == "Retrain")
    assert [r["test accuracy"] for r in others] == [first["test accuracy"]]  # one run, whose row begins both groups
    joint = next(r for r in rows if r["group"].startswith("ResNet-20") and r["arm"] == "joint bits")
    assert "abstract" in joint["note"]
    assert float(joint["minus Retrain"]) == float(joint["test accuracy"]) - float(first["test accuracy"])
    student = next(r for r in rows if r["arm"] == "Apprentice B")
    words = shlex.split(student["command"])
    recipe = parsed_train(words[2], words[3:]).recipe
    assert recipe.network.weights is None and recipe.method.teacher is not None  # which the command says
    assert "--quant.ewgs 0.001" in next(r for r in rows if r["arm"] == "SQAKD")["command"]


def test_table5_has_the_papers_figures(tmp_path, made_up):
    rows = smoke("table5", tmp_path, "--seeds", "0", "--only", "*/SPEQ")
    assert [(row["group"], row["paper"]) for row in rows[:2]] == [("AlexNet", "59.3"), ("ResNet-18", "67.4")]


def folders(monkeypatch) -> None:
    """Where a study reads a network, it is given its recipe, and the seed in the network's place."""

    def finished(shop, folder):
        recipe = from_json((folder / "recipe.json").read_text())
        return recipe, recipe.train.seed

    monkeypatch.setattr(Workshop, "finished", finished)


HALF = 12.706205 * 2.5
"""of the 95 % interval of two differences that are 5 apart"""


def test_table1_has_the_known_figures(tmp_path, made_up, monkeypatch):
    def pairs(recipe, seed, widths):
        gain = 5 * (1 + seed) if isinstance(recipe.method, SPEQ.Settings) else 0
        return {(w, a): {"bounds held": w + 10 * a + seed + gain, "refitted": 1.0} for w in widths for a in widths}

    folders(monkeypatch)
    monkeypatch.setattr("spequant.app.studies.study.every_pair", pairs)
    rows = smoke("table1", tmp_path, *SMALL)
    assert [(r["network"], r["weights"], r["activations"]) for r in rows] == [
        (n, w, a) for n in ("Retrain", "SPEQ") for w in "248" for a in "248"
    ]
    assert {r["seeds"] for r in rows} == {"2"} and len(made_up.trained) == 5
    plain, ours = rows[1], rows[10]  # of 2-bit weights and 4-bit activations
    assert (float(plain["bounds held"]), float(ours["bounds held"])) == (42.5, 50.0)
    assert plain["bounds held, minus Retrain"] == "" and float(ours["bounds held, minus Retrain"]) == 7.5
    assert float(ours["bounds held, +- to Retrain (95 %)"]) == pytest.approx(HALF)
    assert float(ours["bounds held, deviation"]) == pytest.approx(6 / 2**0.5)
    assert (ours["refitted"], ours["refitted, minus Retrain"]) == ("1.0", "0.0")


def test_any_precision_has_the_known_figures(tmp_path, made_up, monkeypatch):
    made_up.accuracy = lambda recipe: 60.0 + recipe.train.seed
    folders(monkeypatch)
    widths = {SPEQ: 5, JointBits: 2, Retrain: 0}

    def at_widths(recipe, seed, asked):
        return {
            bits: 60.0
            + bits
            + seed
            + next(v for k, v in widths.items() if isinstance(recipe.method, k.Settings)) * (1 + seed)
            for bits in asked
        }

    monkeypatch.setattr("spequant.app.studies.study.at_activation_widths", at_widths)
    rows = smoke("any-precision", tmp_path, *SMALL)
    assert [row["activations"] for row in rows] == ["2", "4", "8"]
    assert len(made_up.trained) == 1 + 2 * (3 + 2)  # Retrain at its own width is one of the three networks
    for row in rows:
        assert row["trained at this width"] == "60.5"
        assert ("--quant.act-bits" in row["command"]) == (row is not rows[0])  # whose bits are the recipe's
        assert float(row["one network, SPEQ"]) == 68.0 + float(row["activations"])
        assert float(row["one network, SPEQ, minus it"]) == 7.5 + float(row["activations"])
        assert float(row["one network, SPEQ, +- to it (95 %)"]) == pytest.approx(HALF)
        assert float(row["one network, Retrain, minus it"]) == float(row["activations"])


def test_fig2_raises_layers_of_a_run_that_another_study_made(tmp_path, made_up, monkeypatch, digits_run):
    smoke("table2", tmp_path, "--only", "*/Retrain", *SMALL)
    count = len(made_up.trained)
    recipe, model, _ = load_run(digits_run)
    monkeypatch.setattr(Workshop, "finished", lambda shop, folder: (recipe, model))
    monkeypatch.setattr("spequant.app.studies.greedy.GREEDY_IMAGES", 50)
    rows = smoke("fig2", tmp_path, "--resume", *SMALL)
    assert len(made_up.trained) == count  # Retrain was there
    assert [int(row["raised"]) for row in rows] == list(range(len(rows))) and len(rows) == 7
    assert len({row["layer"] for row in rows}) == len(rows) and rows[0]["layer"] == ""
    assert {float(row["accuracy"]) % 2 for row in rows} == {0.0}  # of 50 images
    soft = rows_of(tmp_path, "fig2-soft-labels")
    assert [row["activations"] for row in soft] == ["2", "4", "8"]
    assert float(soft[0]["distance to 8 bits"]) > 1e-4 > 1e-6 > abs(float(soft[-1]["distance to 8 bits"]))


def test_a_page_says_what_was_run(tmp_path, monkeypatch):
    monkeypatch.setitem(STUDIES, "table2", lambda shop: StudyReport("t", about(shop), [{"x": 1}]))
    settings = Study(
        out=tmp_path / "study", resume=True, epochs=11, train_images=99, seeds=(3, 4), recipe="digits-w2a2-speq"
    )
    run_study("table2", settings)
    page = (tmp_path / "study" / "table2.md").read_text()
    assert "NOT AT FULL LENGTH: 11 of 12 epochs, 99 training images" in page
    words = shlex.split(page.split("command: ")[1].splitlines()[0])
    assert words[:3] == ["spequant", "study", "table2"] and tyro.cli(Study, args=words[3:]) == settings
    assert study_command("sensitivity", Study(run=Path("a b"))) == "spequant study sensitivity 'a b'"
    for epochs in (None, 12, 40):  # the recipe has 12
        assert "NOT AT" not in about(Workshop("table2", replace(settings, epochs=epochs, train_images=None)))
    short = Workshop("table4", Study(out=tmp_path / "a", epochs=40))
    assert "NOT AT FULL LENGTH: 40 of 200 epochs." in about(short, *(family.speq for family in CIFAR))
    assert "NOT AT FULL LENGTH: 6 of 200 epochs." in about(Workshop("table2", Study(out=tmp_path / "a")))
    for recipe, less in (("cifar10-resnet20-w2a2-speq-200", ""), ("cifar10-5k-resnet20-w2a2-speq", "5120 training")):
        told = about(Workshop("table2", Study(out=tmp_path / "a", recipe=recipe)))
        assert less in told if less else "NOT AT" not in told


@pytest.mark.parametrize(
    ("name", "settings", "named", "expected"),
    [
        ("table9", Study(), "study is 'table9'", "table1, fig2, fig3"),
        ("table2", Study(seeds=()), "seeds is ()", "--seeds 0 1 2"),
        ("table2", Study(seeds=(0, -1)), "seeds is (0, -1)", "from 0 on"),
        ("table2", Study(seeds=(1, 1)), "seeds is (1, 1)", "each once"),
        ("table2", Study(epochs=0), "train.epochs is 0", "1 or more"),
        ("table2", Study(train_images=0), "data.images is 0", "1 or more, or None"),
        ("table2", Study(held_out=-1), "data.held_out is -1", "0 or more"),
        ("table2", Study(at_once=0), "at_once is 0", "1 or more"),
        ("fig2", Study(at_once=2), "at_once is 2", "fig2; expected 1"),
        ("table2", Study(recipe="digits-float"), "recipe is 'digits-float'", "cifar10-resnet20-w2a2-speq"),
        ("table4", Study(weights=Path("a")), "weights is 'a'", "--recipe"),
        ("table2", Study(widths=(2, 4)), "widths is (2, 4)", "table2; expected (2, 3, 4"),
        ("table1", Study(widths=(2, 9)), "widths is (2, 9)", "1 to 8, each once, e.g. --widths 2 4 8"),
        ("any-precision", Study(widths=(2, 2)), "widths is (2, 2)", "each once"),
        ("any-precision", Study(widths=()), "widths is ()", "1 to 8"),
        ("fig3", Study(epochs=3), "epochs is 3", "fig3; expected None"),
        ("table2", Study(budget="size"), "budget is 'size'", "table2; expected 'bit-operations'"),
        ("sensitivity", Study(run=Path("a"), smoke=True), "run is a", "--smoke"),
        (
            "sensitivity",
            Study(run=Path("a"), recipe="digits-w2a2-speq"),
            "recipe is 'digits-w2a2-speq'",
            "run; expected None",
        ),
        ("beyond", Study(trials=0), "trials is 0", "1 or more"),
        ("sensitivity", Study(run=Path("no/run")), "no/run/recipe.json", "a finished run"),
    ],
)
def test_bad_settings_are_named(name, settings, named, expected, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=f"{re.escape(named)}.*{re.escape(expected)}"):
        run_study(name, replace(settings, out=tmp_path / "study"))
    assert not (tmp_path / "study").exists()  # nothing was trained before


@pytest.mark.parametrize("package", ["matplotlib.figure", "jinja2", "scipy.special"])
def test_a_study_that_cannot_write_its_page_trains_nothing(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    monkeypatch.setitem(STUDIES, "table2", lambda shop: pytest.fail("it began"))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'spequant\[report\]'"):
        run_study("table2", Study(out=tmp_path / "study"))


def test_float_networks_are_trained_for_the_arms_asked_for_alone(tmp_path, monkeypatch):
    started = []

    def shared(self, size=16, *, one=True):
        return lambda recipe: (started.append(recipe.name), recipe)[1]

    monkeypatch.setattr(Workshop, "shared", shared)
    monkeypatch.setattr(Workshop, "train", lambda shop, arms: [a.label for a in arms])
    monkeypatch.setattr("spequant.app.studies.study.arms_report", lambda title, about, done: done)
    labels = STUDIES["table4"](Workshop("table4", Study(out=tmp_path / "study", only=("ResNet-32*/QKD",))))
    assert labels == ["QKD"] and started == ["cifar100-resnet32-w2a2-speq"]
    one = Study(out=tmp_path / "study", recipe="cifar10-5k-resnet20-w2a2-speq", only=("*/QKD", "*/GSLR"))
    assert STUDIES["table4"](Workshop("table4", one)) == ["QKD", "GSLR"]  # of that network alone
    assert started[1:] == ["cifar10-5k-resnet20-w2a2-speq"]
