"""Studies: what they write, that they go on where they were killed, and figures known from elsewhere."""

import copy
import csv
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
import tyro

import spequant
from spequant import losses
from spequant.cli import main, parsed_train
from spequant.data import ImageSet
from spequant.layers import QuantizedAdd, QuantizedLayer, weight_quantizers
from spequant.models import resnet8
from spequant.prepare import replace_modules
from spequant.quantizers import LSQ, PACT, SAWB
from spequant.recipes import RECIPES
from spequant.recipes.build import with_seed
from spequant.recipes.folder import listing
from spequant.recipes.schema import MethodChoice, to_json
from spequant.studies.arms import (
    Arm,
    arms_report,
    carry_out,
    chosen,
    command_of,
    digest,
    equal_terms,
    facts_of,
    folder_of,
    reason,
    train_arms,
    train_at_once,
)
from spequant.studies.beyond import Tried, _best, passes_of, search, without_each
from spequant.studies.gradients import pull
from spequant.studies.greedy import greedy_order, soft_labels
from spequant.studies.page import Report, in_cell, write_report
from spequant.studies.pictures import blank
from spequant.studies.sensitivity import assign, losses_alone, losses_raised, low_bit_layers
from spequant.studies.study import STUDIES, run_study, study_command
from spequant.studies.tables import CIFAR, IMAGENET, longer, table2, table3, table4, table5
from spequant.studies.tiny import tiny
from spequant.studies.widths import weights_at
from spequant.studies.workshop import Study, Workshop, about
from support.chromium import chromium, opened


def rows_of(folder, name):
    with (folder / f"{name}.csv").open() as file:
        return list(csv.DictReader(file))


def smoke(name, out, *options):
    main(["study", name, "--smoke", "--out", str(out), *options])
    assert all((out / f"{name}.{kind}").stat().st_size > 0 for kind in ("csv", "md", "png", "html"))
    return rows_of(out, name)


def test_table2(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = smoke("table2", Path("study"), "--only", "*/Retrain", "*/cosine, stochastic*")
    assert [row["arm"] for row in rows] == ["Retrain", "cosine, stochastic, u = .5"]
    assert [row["seeds"] for row in rows] == ["2", "2"] and rows[1]["paper"] == "91.44"
    assert rows[0]["minus Retrain"] == "" and float(rows[1]["minus Retrain"]) == float(
        rows[1]["test accuracy"]
    ) - float(rows[0]["test accuracy"])
    finished = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert len(finished) == 5  # the float network, and two seeds of two arms
    with pytest.raises(SystemExit, match="go on with --resume"):
        main(["study", "table2", "--smoke", "--out", "study"])
    lost = next(p.parent for p in finished if "float" not in p.parent.name)
    shutil.rmtree(lost)
    assert smoke("table2", Path("study"), "--only", "*/Retrain", "*/cosine, stochastic*", "--resume")
    again = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    assert set(again) == set(finished)  # the lost one was trained again under its name, the others were kept
    assert [p for p in again if again[p] != finished[p]] == [lost / "result.json"]
    command = shlex.split(rows[1]["command"])
    trained = parsed_train(command[2], command[3:])
    assert trained.recipe.method.name == "speq" and trained.out == folder_of(trained.recipe, Path("study/runs"))
    start = trained.recipe.network.weights
    assert f"sha256 of {start.name}/metrics.jsonl" in Path("study/table2.md").read_text()
    os.rename("study", "moved")
    assert smoke("table2", tmp_path / "moved", "--only", "*/Retrain", "*/cosine, stochastic*", "--resume")
    there = {p.relative_to("moved"): p.stat().st_mtime_ns for p in Path("moved").rglob("result.json")}
    assert there == {p.relative_to(tmp_path / "study"): t for p, t in again.items()}  # nothing was trained anew


def test_runs_at_once_are_the_runs_one_by_one(tmp_path):
    (tmp_path / "of-ten-classes.th").touch()  # which made-up images of two do not start from
    options = ["--seeds", "0", "--only", "*/Retrain", "*/SPEQ", "--threads", "1"]
    options += ["--weights", str(tmp_path / "of-ten-classes.th")]
    alone = smoke("table3", tmp_path / "alone", *options)
    both = smoke("table3", tmp_path / "both", *options, "--at-once", "2")
    own = [{name: row[name] for name in ("arm", "test accuracy", "held out", "minus Retrain")} for row in both]
    assert own == [{name: row[name] for name in own[0]} for row in alone]
    starts = [json.loads(p.read_text())[0]["command"] for p in (tmp_path / "both").rglob("environment.json")]
    assert sorted(" train " in start for start in starts) == [False, True, True]  # the float network is trained before
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}
    smoke("table3", tmp_path / "both", *options, "--at-once", "2", "--resume")
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("result.json")}


def test_a_run_at_once_that_fails_costs_no_other(tmp_path):
    good = tiny(RECIPES["digits-w2a2-retrain"](), tmp_path, 8)
    good = replace(good, data=RECIPES["digits-w2a2-retrain"]().data, network=replace(good.network, weights=None))
    bad = replace(good, network=replace(good.network, weights=tmp_path / "absent"))
    with pytest.raises(ChildProcessError, match=r"not finished: .*digits-w2a2-retrain"):
        train_at_once([bad, good, good], tmp_path / "runs", 2)
    assert [p.parent for p in tmp_path.rglob("result.json")] == [folder_of(good, tmp_path / "runs")]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_run_that_diverges_is_a_row_that_says_so(tmp_path, at_once):
    good = tiny(RECIPES["digits-w2a2-retrain"](), tmp_path, 8)
    good = replace(good, data=RECIPES["digits-w2a2-retrain"]().data, network=replace(good.network, weights=None))
    good = replace(good, data=replace(good.data, images=64))
    bad = replace(good, train=replace(good.train, lr=1e30))
    arms = [Arm("g", label, good.name, recipe) for label, recipe in (("Retrain", good), ("too fast", bad))]
    done = train_arms(arms, [0, 1], tmp_path / "runs", at_once)
    assert [[bool(result) for result, _ in found.values()] for found in done] == [[True, True], [False, False]]
    report = arms_report("t", "a", arms, done)
    assert [(row["seeds"], row["note"]) for row in report.rows] == [(2, ""), (0, "diverged: seed 0, 1")]
    write_report(report, tmp_path, "t")
    folder = done[1][0][1]
    assert "the loss is not finite at epoch 1" in reason(folder)
    assert {row["run"]: row["state"] for row in listing(tmp_path / "runs")}[str(folder)] == "diverged"
    before = (folder / "metrics.jsonl").stat().st_mtime_ns
    assert train_arms(arms, [0, 1], tmp_path / "runs", at_once) == done  # it is not tried again
    assert (folder / "metrics.jsonl").stat().st_mtime_ns == before
    with pytest.raises(FloatingPointError, match=r"every run of 't' diverged: .*not finite"):
        arms_report("t", "a", arms[1:], done[1:])
    (folder / "diverged.txt").unlink()
    with pytest.raises(FloatingPointError, match="not finite"):
        carry_out(with_seed(bad, 0), tmp_path / "runs")
    assert (folder / "diverged.txt").exists()


def test_a_killed_study_goes_on(tmp_path):
    command = [sys.executable, "-m", "spequant", "study", "table3", "--smoke", "--seeds", "0", "--only", "*/Retrain"]
    command += ["*/SPEQ", "--out", str(tmp_path / "study")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not list(tmp_path.rglob("result.json")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(tmp_path.rglob("result.json")) and not (tmp_path / "study" / "table3.csv").exists()
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [row["arm"] for row in rows_of(tmp_path / "study", "table3")] == ["Retrain", "SPEQ"]


def test_table1_and_any_precision_and_fig2_share_their_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = smoke("table1", Path("study"))
    assert len(rows) == 2 * 9 and {(r["weights"], r["activations"]) for r in rows} == {
        (w, a) for w in "248" for a in "248"
    }
    gaps = [float(s["refitted"]) - float(r["refitted"]) for r, s in zip(rows[:9], rows[9:], strict=True)]
    assert [float(r["refitted, minus Retrain"]) for r in rows[9:]] == pytest.approx(gaps)  # of two seeds
    assert {r["seeds"] for r in rows} == {"2"} and all(r["bounds held, deviation"] for r in rows)
    before = len(list(tmp_path.rglob("result.json")))
    rows = smoke("fig2", Path("study"), "--resume")
    assert len(list(tmp_path.rglob("result.json"))) == before  # Retrain was there
    assert [int(row["raised"]) for row in rows] == list(range(len(rows))) and len({r["layer"] for r in rows}) == len(
        rows
    )
    os.rename("study", "moved")  # with the data that the runs name
    rows = smoke("any-precision", Path("moved"), "--resume")
    assert [row["activations"] for row in rows] == ["2", "4", "8"]
    name = "one network, SPEQ"
    for row in rows:
        gap = float(row[name]) - float(row["trained at this width"])
        assert float(row[f"{name}, minus it"]) == pytest.approx(gap) and row[f"{name}, +- to it (95 %)"]


def test_table4(tmp_path):
    only = [f"ResNet-20, CIFAR-10/{label}" for label in ("Retrain", "Apprentice B", "SQAKD")]
    ours = [f"*ours*/{label}" for label in ("Retrain", "joint bits")]
    rows = smoke(
        "table4", tmp_path / "study", "--seeds", "0", "--recipe", "cifar10-resnet20-w2a2-speq", "--only", *only, *ours
    )
    assert [row["arm"] for row in rows] == ["Retrain", "Apprentice B", "SQAKD", "Retrain", "joint bits"]
    assert rows[0]["test accuracy"] == rows[3]["test accuracy"] and rows[0]["group"] != rows[3]["group"]
    gap = float(rows[4]["test accuracy"]) - float(rows[3]["test accuracy"])
    assert float(rows[4]["minus Retrain"]) == gap and "abstract" in rows[4]["note"]
    assert "--quant.ewgs 0.001" in rows[2]["command"]
    words = shlex.split(rows[1]["command"])
    student = parsed_train(words[2], words[3:]).recipe
    assert student.network.weights is None and student.method.teacher is not None  # which the command says


def test_sensitivity(tmp_path):
    rows = smoke("sensitivity", tmp_path / "study", "--seeds", "0", "--budget", "size")
    assert [row["arm"] for row in rows[:3]] == ["Retrain", "W2A2", "W3A3"] and "mixed" in rows[3]["arm"]
    small, large, mixed = (float(row["KiB"]) for row in rows[1:])
    assert small <= mixed <= (small + large) / 2 < large  # within the budget
    layers = rows_of(tmp_path / "study", "sensitivity-layers")
    assert len(layers) == 18  # of ResNet-20 all but the ends
    chosen = {f"{row['layer']}={row[rows[3]['arm']]}" for row in layers}
    words = shlex.split(rows[3]["command"])
    assert set(parsed_train(words[2], words[3:]).recipe.quant.overrides) == chosen


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sensitivity_of_a_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    short = ("--train.epochs", "1", "--train.no-compile")
    main(["train", "digits-float", *short])
    main(["train", "digits-w2a2-speq", *short, "--network.weights", "runs/digits-float", "--out", "run"])
    main(["study", "sensitivity", "run", "--seeds", "0", "--epochs", "1"])
    rows = rows_of(Path("runs/study-sensitivity"), "sensitivity")
    assert [row["arm"] for row in rows if "mixed" not in row["arm"]] == ["Retrain", "W2A2", "W3A3", "W4A4"]
    operations = [float(row["million bit operations"]) for row in rows[1:]]
    assert sum("mixed" in row["arm"] for row in rows) == 3 and min(operations) == operations[0]


def test_beyond(tmp_path):
    rows = smoke("beyond", tmp_path / "study", "--seeds", "0")
    assert [row["arm"] for row in rows[:4]] == ["Retrain", "SPEQ", "Retrain, best", "SPEQ, best"]
    trials = rows_of(tmp_path / "study", "beyond-trials")
    assert [(t["search"], t["trial"]) for t in trials] == [(s, t) for s in ("Retrain", "SPEQ") for t in "01"]
    for i, name in ((2, "Retrain"), (3, "SPEQ")):
        first, other = (t for t in trials if t["search"] == name)
        assert first["what"] == "the paper's settings" != other["what"]
        assert float(first["held out"]) == float(rows[i - 2]["held out"])
        best = max((t for t in trials if t["search"] == name), key=lambda t: float(t["held out"]))
        assert float(best["held out"]) == float(rows[i]["held out"]) and rows[i]["note"] == best["what"]
    changed = [] if rows[3]["note"] == "the paper's settings" else rows[3]["note"].split(", ")
    assert [row["arm"] for row in rows[4:]] == ["Retrain, best, equal time", *(f"best without {p}" for p in changed)]
    assert rows[2]["note"] in rows[4]["note"] and "the wall time of SPEQ's best" in rows[4]["note"]
    runs = {f.parent.name for f in (tmp_path / "study" / "runs").glob("*/metrics.jsonl")}
    page = (tmp_path / "study" / "beyond.md").read_text()
    assert runs == set(re.findall("sha256 of (.*)/metrics.jsonl", page))  # the trials' and the float network's too
    best = float(rows[2]["test accuracy"])
    for i, row in enumerate(rows):
        gap = row["minus Retrain, best"]
        assert gap == "" if i == 2 else float(gap) == float(row["test accuracy"]) - best
    again = smoke("beyond", tmp_path / "study", "--seeds", "0", "--resume")
    assert again == rows  # the same trials, none of them trained again


def test_a_trial_that_diverges_is_none_that_wins(tmp_path, monkeypatch):
    def held(tried, base, shop, seed):
        return -math.inf if "LSQ" in tried.parts else float(len(tried.parts))

    monkeypatch.setattr("spequant.studies.beyond._held", held)
    monkeypatch.setattr("spequant.studies.beyond._recipe", lambda base, tried, shop: base)  # nothing is trained
    shop = Workshop("beyond", Study(out=tmp_path / "study", trials=12, recipe="digits-w2a2-speq"))
    base = RECIPES["digits-w2a2-speq"]()
    found = search("Retrain", base, shop)
    assert len(found) == 12 and any(t.held == -math.inf for t in found)  # each counts as a trial
    won = _best(found, base, shop)
    assert won.held == max(t.held for t in found) > 0 and "LSQ" not in won.parts
    monkeypatch.setattr("spequant.studies.beyond._held", lambda *_: -math.inf)
    with pytest.raises(FloatingPointError, match="all of 12 trials diverged"):
        _best(search("SPEQ", base, shop), base, shop)


def test_equal_time_counts_the_passes_of_every_teacher():
    base = RECIPES["cifar10-5k-resnet20-w2a2-beyond"]()
    assert base.method.passes == 2 and passes_of(base.method) == 3  # and the float network's
    assert passes_of(MethodChoice("speq")) == 1
    assert [longer(base, passes).train.epochs for passes in (1, 3)] == [53, 80]  # of 40


def test_an_ablation_leaves_out_one_part_at_a_time():
    won = Tried("speq", {name: lambda recipe, name=name: recipe + name for name in "abc"}, 1.0)
    rest = {part: "".join(change("") for change in one.parts.values()) for part, one in without_each(won).items()}
    assert rest == {"a": "bc", "b": "ac", "c": "ab"}
    assert without_each(won)["b"].label == "a, c" and without_each(Tried("speq", {}, 1.0)) == {}


def test_table5(tmp_path):
    rows = smoke("table5", tmp_path / "study", "--seeds", "0", "--only", "ResNet-18/SPEQ")
    assert [row["paper"] for row in rows] == ["67.4"]


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STUDIES)
def test_every_study_whole(name, tmp_path):
    assert smoke(name, tmp_path / "study", *([] if name == "fig3" else ["--seeds", "0"]))


def test_fig3_has_the_known_figures(tmp_path):
    for student, teacher, kl, cosine in ((0.95, 0.15, 1.60, 0.031), (0.8, 0.5, 0.60, 0.039), (0.2, 0.9, 1.40, 0.746)):
        assert pull(losses.kl, student, teacher) == pytest.approx(kl, abs=0.005)
        assert pull(losses.cosine, student, teacher) == pytest.approx(cosine, abs=0.0006)
    rows = smoke("fig3", tmp_path / "fig3")
    assert len(rows) == 25


def test_all_arms_are_on_equal_terms_and_their_commands_say_what_they_are():
    arms = [a for f in CIFAR for t in (table2, table3, table4) for a in t(f, lambda r: r)]
    arms += [a for f in IMAGENET for a in table5(f, lambda r: r)]
    equal_terms(arms)
    runs = Path("runs")
    assert len({(a.group, a.label, digest(a.recipe, runs)) for a in arms}) > 100
    for a in arms:
        words = shlex.split(command_of(a.base, a.recipe))
        assert digest(parsed_train(words[2], words[3:]).recipe, runs) == digest(a.recipe, runs), words
    for arm in (a for a in arms if a.label != "Retrain" and "train.lr" not in a.changes):  # whatever its note says
        other = replace(arm, recipe=replace(arm.recipe, train=replace(arm.recipe.train, lr=1.0)))
        first = next(a for a in arms if a.group == arm.group)
        with pytest.raises(ValueError, match=r"is not on equal terms with Retrain: .*train\.lr is 1\.0"):
            equal_terms([first, other])
    assert len({a.changes for a in arms}) == 5
    with pytest.raises(ValueError, match="only has 'x', which matches no arm"):
        chosen(arms, ["x"])


def test_a_digest_is_of_what_is_trained(tmp_path):
    recipe, runs = RECIPES["digits-w2a2-speq"](), tmp_path / "study" / "runs"

    def of(runs, **changes):
        return digest(replace(recipe, **changes), runs)

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
    assert of(runs, data=replace(recipe.data, root=tmp_path)) == of(runs)  # where a set of that name lies
    folders = [tmp_path / "imagenet", tmp_path / "flowers", tmp_path / "study" / "images"]
    data = [replace(recipe.data, name="folder", root=root) for root in folders]
    assert len({of(runs, data=d) for d in data}) == 3  # each another data set
    moved = replace(data[2], root=tmp_path / "moved" / "images")
    assert of(tmp_path / "moved" / "runs", data=moved) == of(runs, data=data[2])


def test_a_folder_without_a_root_is_the_environments(tmp_path, monkeypatch):
    recipe = RECIPES["digits-w2a2-speq"]()
    recipe, found = replace(recipe, data=replace(recipe.data, name="folder")), set()
    for name in ("a", "b"):
        monkeypatch.setenv("SPEQUANT_DATA", str(tmp_path / name))
        found.add(digest(recipe, tmp_path / "runs"))
        assert digest(replace(recipe, data=replace(recipe.data, root=tmp_path / name)), tmp_path / "runs") in found
    assert len(found) == 2


class Outside(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses, self.tags = [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [v for k, v in attrs if k in ("src", "href")]


def test_small_numbers_keep_their_digits():
    numbers = (75.0, 0.4, 0.0996, 0.0018, -0.05, 0.0, 1e-9, math.nan, None, 3)
    assert [in_cell(x) for x in numbers] == ["75.00", "0.40", "0.10", "0.0018", "-0.05", "0.00", "0.00", "", "", "3"]


def test_a_page_stands_alone_and_escapes(tmp_path):
    rows = [{"arm": "<script>alert(1)</script>|", "x": 1.234, "n": None, "command": "a 'b|c'"}]
    write_report(
        Report("A < B & C", "about <it>", rows, lambda f: f.subplots().plot([1, 2]), {"torch": "<2>"}), tmp_path, "a"
    )
    page = Outside()
    page.feed((tmp_path / "a.html").read_text())
    assert page.addresses and all(a.startswith("data:") for a in page.addresses)
    assert "script" not in page.tags and {"table", "img", "ul"} <= set(page.tags)
    assert "1.23" in (tmp_path / "a.html").read_text() and "\\|" in (tmp_path / "a.md").read_text()
    assert rows_of(tmp_path, "a") == [{"arm": rows[0]["arm"], "x": "1.234", "n": "", "command": "a 'b|c'"}]


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_a_page_opens_in_chromium_without_an_error(tmp_path):
    write_report(Report("A", "B", [{"x": 1}], lambda f: f.subplots().plot([1, 2])), tmp_path, "a")
    read = "[document.querySelector('h1').textContent, document.images.length, document.images[0].naturalWidth > 0]"
    page = opened(tmp_path / "a.html", read)
    assert page.found == ["A", 1, True] and page.console == []
    assert [address for address in page.requests if not address.startswith("data:")] == [(tmp_path / "a.html").as_uri()]
    (tmp_path / "b.html").write_text("<script>console.error('no'); absent()</script><img src='b.png'>")
    assert len(opened(tmp_path / "b.html", "1").console) == 3  # a page that is not in order is told from one that is


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("table9", Study(), "study is 'table9'; expected one of table1, fig2"),
        ("table2", Study(seeds=()), "seeds is (); expected numbers from 0 on, each once"),
        ("table2", Study(seeds=(0, -1)), "seeds is (0, -1); expected numbers from 0 on"),
        ("table2", Study(seeds=(1, 1)), "seeds is (1, 1); expected numbers from 0 on, each once"),
        ("table2", Study(epochs=0), "train.epochs is 0; expected 1 or more"),
        ("table2", Study(images=0), "data.images is 0; expected 1 or more, or None for all"),
        ("table2", Study(held_out=-1), "data.held_out is -1; expected 0 or more images"),
        ("table2", Study(at_once=0), "at_once is 0; expected 1 or more"),
        ("fig2", Study(at_once=2), "at_once is 2, which has no effect on fig2"),
        ("table2", Study(recipe="digits-float"), "recipe is 'digits-float'; expected a recipe of SPEQ's"),
        ("table4", Study(weights=Path("a")), "weights is 'a', which has no effect on several networks; choose one"),
        ("table2", Study(widths=(2, 4)), "widths is (2, 4), which has no effect on table2"),
        ("table1", Study(widths=(2, 9)), "widths is (2, 9); expected bits from 1 to 8, each once, e.g. --widths 2 4 8"),
        ("any-precision", Study(widths=(2, 2)), "widths is (2, 2); expected bits from 1 to 8, each once"),
        ("any-precision", Study(widths=()), "widths is (); expected bits from 1 to 8"),
        ("fig3", Study(epochs=3), "epochs is 3, which has no effect on fig3"),
        ("table2", Study(budget="size"), "budget is 'size', which has no effect on table2"),
        ("sensitivity", Study(run=Path("a"), smoke=True), "run is a, which --smoke does not take"),
        ("sensitivity", Study(run=Path("a"), recipe="digits-w2a2-speq"), "recipe is 'digits-w2a2-speq', which has no"),
        ("beyond", Study(trials=0), "trials is 0; expected 1 or more"),
        ("sensitivity", Study(run=Path("no/run")), "no/run/recipe.json does not exist"),
    ],
)
def test_bad_settings_are_named(name, settings, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        run_study(name, replace(settings, out=tmp_path / "study"))
    assert not (tmp_path / "study").exists()  # nothing was trained before


def test_a_study_that_cannot_draw_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    monkeypatch.setitem(STUDIES, "table2", lambda shop: pytest.fail("it began"))
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'spequant\[report\]'"):
        run_study("table2", Study(out=tmp_path / "study"))


def test_the_float_run_that_a_recipe_names_is_trained_first(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        "spequant.studies.workshop.carry_out",
        lambda recipe, runs: (trained.append(recipe), ({}, runs / recipe.name))[1],
    )
    shop = Workshop("x", Study(out=tmp_path / "study", root=tmp_path, epochs=3, threads=1))
    recipe = shop.shared()(RECIPES["cifar10-5k-resnet20-w2a2-speq"]())
    assert recipe.network.weights == tmp_path / "study" / "runs" / "cifar10-5k-resnet20-float"
    assert [r.name for r in trained] == ["cifar10-5k-resnet20-float"] and trained[0].train.epochs == 40
    assert (recipe.train.epochs, recipe.data.root, trained[0].data.root) == (3, tmp_path, tmp_path)
    assert recipe.data.measure_every == 3  # what is held out is read at the end alone
    shop.shared()(RECIPES["cifar10-resnet20-w2a2-speq-200"]())  # names none: its network's float recipe
    assert [r.name for r in trained[1:]] == ["cifar10-resnet20-float"]
    given = Workshop("x", Study(out=tmp_path / "other", weights=tmp_path)).shared()
    transfer = RECIPES["transfer-resnet20-w2a2-speq"]()  # which has a new head, and names no weights
    assert given(transfer).network.weights == tmp_path
    assert given(RECIPES["cifar10-resnet20-w2a2-speq"]()).network.weights == tmp_path and len(trained) == 2
    apart = Workshop("x", Study(out=tmp_path / "study", held_out=5000)).shared()  # held out from the float network, too
    for name in ("cifar10-resnet20-w2a2-speq-200", "cifar10-5k-resnet20-w2a2-speq"):
        apart(RECIPES[name]())
    assert [(r.data.images, r.data.held_out) for r in trained[2:]] == [(None, 5000), (5120, 0)]
    with pytest.raises(ValueError, match="weights is not set, and mine names no float run"):
        shop.shared()(replace(RECIPES["cifar10-resnet20-w2a2-speq"](), name="mine"))


def test_given_weights_may_have_seen_what_is_held_out(tmp_path):
    def told(data, **settings):
        (tmp_path / "float").mkdir(exist_ok=True)
        floating = RECIPES["cifar10-5k-resnet20-float"]()
        (tmp_path / "float" / "recipe.json").write_text(to_json(replace(floating, data=replace(floating.data, **data))))
        shop = Workshop("x", Study(out=tmp_path / "study", weights=tmp_path / "float", **settings))
        shop.shared()(RECIPES["cifar10-resnet20-w2a2-speq"]())
        return "may have seen the held-out images" in about(shop)

    everything = {"images": None}
    assert told(everything, held_out=5000) and not told(everything) and not told(everything | {"held_out": 5000})
    assert not told(everything | {"held_out": 5000}, held_out=4000) and told({"images": 5120}, held_out=5000)
    assert not told({"images": 5120}, held_out=5000, images=5120) and told({}, held_out=5000, images=5119)
    shop = Workshop("x", Study(out=tmp_path / "study", weights=tmp_path / "file.pt", held_out=1))
    shop.shared()(RECIPES["cifar10-resnet20-w2a2-speq"]())
    assert shop.seen


def test_a_study_on_one_network_keeps_its_recipes_settings_and_the_papers_figures():
    def arms(recipe, table):
        shop = Workshop("x", Study(recipe=recipe))
        return {a.label: a for a in reversed(table(shop.family(), lambda r: r))}  # the paper's Retrain, not the other

    own = arms("cifar10-5k-resnet20-w2a2-speq", table4)
    assert own["SPEQ"].recipe.method == RECIPES["cifar10-5k-resnet20-w2a2-speq"]().method
    assert own["SPEQ"].recipe.method.temperature == 2.0 and own["SPEQ and KD"].recipe.method.temperature == 2.0
    assert arms("cifar10-5k-resnet20-w2a2-speq", table2)["KL, Mix"].recipe.method.temperature == 2.0
    around = {label for label in arms("cifar10-5k-resnet20-w2a2-speq", table3) if " T = " in label}
    assert around == {"SPEQ, T = 1", "SPEQ, T = 4"}
    assert {label for label in arms(None, table3) if " T = " in label} == {"SPEQ, T = 2", "SPEQ, T = 4"}
    for recipe in (None, "cifar10-resnet20-w2a2-speq-200"):
        papers = {label: a.paper for label, a in arms(recipe, table4).items() if a.paper}
        assert papers == {"Retrain": 90.7, "SPEQ": 91.44, "QKD": 91.24}
        assert sum(a.paper is not None for a in arms(recipe, table2).values()) == 3
    assert {RECIPES[family.speq]().train.epochs for family in CIFAR} == {200}  # table4's rows are of one length
    assert "Apprentice B" not in arms("imagenet-resnet18-w2a2-speq", table4)  # whose teacher would be at random


def test_float_networks_are_trained_for_the_arms_asked_for_alone(tmp_path, monkeypatch):
    started = []

    def shared(self, size=16, *, one=True):
        return lambda recipe: (started.append(recipe.name), recipe)[1]

    monkeypatch.setattr(Workshop, "shared", shared)
    monkeypatch.setattr(Workshop, "train", lambda shop, arms: [a.label for a in arms])
    monkeypatch.setattr("spequant.studies.study.arms_report", lambda title, about, arms, done: done)
    labels = STUDIES["table4"](Workshop("table4", Study(out=tmp_path / "study", only=("ResNet-32*/QKD",))))
    assert labels == ["QKD"] and started == ["cifar100-resnet32-w2a2-speq"]
    one = Study(out=tmp_path / "study", recipe="cifar10-5k-resnet20-w2a2-speq", only=("*/QKD", "*/GSLR"))
    assert STUDIES["table4"](Workshop("table4", one)) == ["QKD", "GSLR"]  # of that network alone
    assert started[1:] == ["cifar10-5k-resnet20-w2a2-speq"]


def test_greedy_order_raises_what_leaves_the_least_loss():
    torch.manual_seed(0)
    images, labels = torch.randn(64, 3, 8, 8), torch.randint(0, 10, (64,))
    model = spequant.prepare(resnet8(), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [(images, labels)], samples=64)
    steps = greedy_order(model, images, labels, batch=32)
    low = [n for n, q in spequant.layers.act_quantizers(model).items() if q.bits == 2]
    assert sorted(s.layer for s in steps[1:]) == sorted(low)

    def loss(bits):
        with spequant.precision(model, spequant.Fixed(bits)), torch.no_grad():
            return float(torch.nn.functional.cross_entropy(model.eval()(images), labels))

    tries = {name: loss({name: 8}) for name in low}
    assert steps[1].layer == min(tries, key=tries.get) and steps[1].loss == pytest.approx(min(tries.values()), rel=1e-5)
    assert steps[-1].loss == pytest.approx(loss(dict.fromkeys(low, 8)), rel=1e-5)
    rows = soft_labels(model, images, labels, (2, 8))
    assert rows[1]["distance to 8 bits"] == pytest.approx(0, abs=1e-6) and rows[0]["distance to 8 bits"] > 1e-4
    assert all(0.1 < row["confidence"] < 1 and 0 < row["entropy"] < 2.31 for row in rows)


def test_one_layer_alone_is_quantized():
    torch.manual_seed(0)
    pixels, labels = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (48,))
    images = ImageSet(pixels, labels, mean=(0.5,) * 3, std=(0.3,) * 3, classes=10)
    model = spequant.prepare(resnet8(), weight=SAWB(2), act=PACT(2))
    x = images.normalise(pixels)
    spequant.calibrate(model, [x], samples=48)
    statistics = {k: v.clone() for k, v in model.state_dict().items()}
    without, losses = losses_alone(model, images)
    assert all(torch.equal(v, statistics[k]) for k, v in model.state_dict().items())
    names = [n for n, m in model.named_modules() if isinstance(m, QuantizedLayer)]
    assert list(losses) == names and low_bit_layers(model, 2, 2) == names[1:-1]

    def loss(kept):  # literally: the float modules in the others' places
        plain = copy.deepcopy(model)
        made = {id(m): m.layer for n, m in plain.named_modules() if isinstance(m, QuantizedLayer) and n != kept}
        made |= {id(m): m.add for m in plain.modules() if isinstance(m, QuantizedAdd)}
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(replace_modules(plain, made).train()(x), labels))

    assert without == pytest.approx(loss(None), rel=1e-5)
    assert losses == pytest.approx({n: loss(n) for n in names}, rel=1e-4)
    assert len(set(losses.values())) == len(names)
    trained, raised = losses_raised(model, names[1:-1], images)
    first = greedy_order(model, x, labels, batch=48)
    assert trained == pytest.approx(first[0].loss, rel=1e-5) and min(raised, key=raised.get) == first[1].layer


@pytest.mark.parametrize("seed", range(5))
def test_an_assignment_is_the_best_within_its_budget(seed):
    rng = np.random.default_rng(seed)
    losses = {n: dict(zip((2, 3, 4), sorted(rng.random(3), reverse=True), strict=True)) for n in "abcde"}
    costs = {n: {bits: int(rng.integers(10, 1000)) * bits**2 for bits in (2, 3, 4)} for n in "abcde"}
    budget = 0.5 * sum(c[2] + c[4] for c in costs.values())
    found = assign(losses, costs, budget)

    def total(table, widths):
        return sum(table[n][bits] for n, bits in zip(table, widths, strict=True))

    allowed = [w for w in itertools.product((2, 3, 4), repeat=5) if total(costs, w) <= budget]
    assert tuple(found.values()) in allowed
    assert total(losses, found.values()) == pytest.approx(min(total(losses, w) for w in allowed))
    with pytest.raises(ValueError, match=r"budget is 1; expected [\d,]+ or more, which the fewest bits take"):
        assign(losses, costs, 1)


def test_weights_at_another_width_keep_their_bounds():
    model = spequant.prepare(resnet8(), weight=LSQ(2), act=PACT(2))
    spequant.calibrate(model, [torch.randn(32, 3, 8, 8)], samples=32)
    layer = model.layer1[0].conv1
    q = layer.weight_quantizer
    home, bounds = q(layer.float_weight), q.bounds(layer.float_weight)
    with weights_at(model, 8, 2):
        fine = q(layer.float_weight)
        assert len(torch.unique(fine)) > 20 and all(map(torch.equal, q.bounds(layer.float_weight), bounds))
        assert {int(q.levels) for q in weight_quantizers(model).values() if q.bits == 8} == {256}  # ends keep theirs
    assert torch.equal(q(layer.float_weight), home)
    q.hold_codes(q.encode(layer.float_weight))
    assert q.frozen is not None
    q.frozen[:2] = True
    with torch.no_grad():
        layer.float_weight[:2] = -layer.float_weight[:2]  # frozen weights stay where they were
    with weights_at(model, 8, 2):
        kept = q(layer.float_weight)
        assert torch.allclose(kept[:2], home[:2], atol=1e-6) and torch.equal(kept[2:], fine[2:])
        low, high = q.bounds(layer.float_weight)
        values = low + q.encode(layer.float_weight) * (high - low) / (q.levels - 1)
        assert torch.allclose(values, kept, atol=1e-6)
    assert torch.equal(q(layer.float_weight), home)
    with torch.no_grad():
        layer.float_weight[:2] = -layer.float_weight[:2]
    inside = (layer.float_weight >= bounds[0]) & (layer.float_weight <= bounds[1])
    assert (fine - layer.float_weight)[inside].abs().max() < (home - layer.float_weight)[inside].abs().max() / 10


def test_a_page_says_what_was_run(tmp_path, monkeypatch):
    monkeypatch.setitem(STUDIES, "table2", lambda shop: Report("t", about(shop), [{"x": 1}]))
    settings = Study(out=tmp_path / "study", resume=True, epochs=11, images=99, seeds=(3, 4), recipe="digits-w2a2-speq")
    run_study("table2", settings)
    page = (tmp_path / "study" / "table2.md").read_text()
    assert "NOT AT FULL LENGTH: 11 of 12 epochs, 99 training images" in page
    words = shlex.split(page.split("command: ")[1].splitlines()[0])
    assert words[:3] == ["spequant", "study", "table2"] and tyro.cli(Study, args=words[3:]) == settings
    assert study_command("sensitivity", Study(run=Path("a b"))) == "spequant study sensitivity 'a b'"
    for epochs in (None, 12, 40):  # the recipe has 12
        assert "NOT AT" not in about(Workshop("table2", replace(settings, epochs=epochs, images=None)))
    short = Workshop("table4", Study(out=tmp_path / "a", epochs=40))
    assert "NOT AT FULL LENGTH: 40 of 200 epochs." in about(short, *(family.speq for family in CIFAR))
    assert "NOT AT FULL LENGTH: 6 of 200 epochs." in about(Workshop("table2", Study(out=tmp_path / "a")))
    for recipe, less in (("cifar10-resnet20-w2a2-speq-200", ""), ("cifar10-5k-resnet20-w2a2-speq", "5120 training")):
        told = about(Workshop("table2", Study(out=tmp_path / "a", recipe=recipe)))
        assert less in told if less else "NOT AT" not in told


def written(folder, recipe, *commits):
    """A run's folder, as far as a page reads it."""
    folder.mkdir(parents=True)
    starts = [{"device": "cpu", "commit": commit, "python": "3", "torch": "2"} for commit in commits]
    (folder / "environment.json").write_text(json.dumps(starts))
    (folder / "recipe.json").write_text(to_json(recipe))
    (folder / "metrics.jsonl").write_text("{}")
    return folder


def test_a_page_names_the_runs_that_its_own_start_from(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    runs, floating = (
        Path("study/runs"),
        replace(RECIPES["digits-float"](), train=replace(RECIPES["digits-float"]().train, epochs=3)),
    )
    start = written(folder_of(floating, runs), floating, "aaa")
    recipe = RECIPES["digits-w2a2-speq"]()
    recipe = replace(recipe, network=replace(recipe.network, weights=start))
    run = written(folder_of(recipe, runs), recipe, "bbb", "ccc")  # which went on
    facts = facts_of([run])
    assert facts["commit"] == "aaa, bbb, ccc"
    words = shlex.split(facts[f"command of {start.name}"])
    again = parsed_train(words[2], words[3:])
    assert (again.recipe, again.out) == (floating, start)
    assert [name for name in facts if "sha256" in name] == [f"sha256 of {f.name}/metrics.jsonl" for f in (start, run)]


@pytest.mark.parametrize(("families", "table", "panels"), [(CIFAR, table4, 8), (IMAGENET, table5, 4)])
def test_a_picture_of_many_networks_has_room_for_each(families, table, panels, tmp_path):
    folder = written(tmp_path / "run", RECIPES["digits-w2a2-speq"](), "abc")
    arms = [a for family in families for a in table(family, lambda recipe: recipe)]
    done = [{0: ({"test_accuracy": 70.0 + i / 7, "seconds": 2.0}, folder)} for i in range(len(arms))]
    figure = blank(9, 4.5)
    arms_report("t", "a", arms, done).draw(figure)
    figure.canvas.draw()  # warns, which is an error here, where labels leave a panel nothing
    assert len(figure.axes) == panels
    for axes in figure.axes:
        assert min(axes.get_window_extent().size) > 150  # of 900 pixels across
        least, most = axes.get_tightbbox().extents.reshape(2, 2)
        assert (least >= -1).all() and (most <= figure.bbox.size + 1).all()  # to a pixel


def test_a_difference_of_one_seed_has_no_interval(tmp_path):
    recipe = RECIPES["digits-w2a2-speq"]()

    def found(accuracy):
        folder = written(tmp_path / str(accuracy), recipe, "abc")
        return {0: ({"test_accuracy": accuracy, "seconds": 2.0}, folder)}

    arms = [Arm("g", label, "digits-w2a2-speq", recipe) for label in ("Retrain", "SPEQ")]
    report = arms_report("t", "a", arms, [found(90.0), found(91.0)])
    assert report.rows[1]["minus Retrain"] == 1.0 and report.rows[1]["+- (95 %)"] != report.rows[1]["+- (95 %)"]
    write_report(report, tmp_path, "a")
    assert [shlex.split(row["command"])[-2:] for row in report.rows] == [
        ["--out", str(tmp_path / accuracy)] for accuracy in ("90.0", "91.0")
    ]
    assert "| 1.00 |  |" in (tmp_path / "a.md").read_text()
    assert "sha256 of 90.0/metrics.jsonl" in report.facts
