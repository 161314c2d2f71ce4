"""The command `sweep`: runs side by side, each as if alone; stopped, resumed, failed, compared; bad input."""

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from spequant.app.cli import main
from spequant.app.recipes import RECIPES
from spequant.app.studies.side_by_side import Job
from spequant.app.studies.sweep import run_sweep
from support.made_up_runs import Run, finished, in_this_process

QUICK = ["--network.weights", "None", "--train.epochs", "1", "--train.no-compile", "--train.threads", "1"]


def test_a_sweep_trains_every_recipe_with_every_seed_and_compares_them(tmp_path, monkeypatch, capsys):
    """Carried out in this process, nothing is trained."""
    run = Run(lambda recipe: 70.0 + recipe.train.seed + recipe.quantized)
    monkeypatch.setattr("spequant.app.studies.sweep.side_by_side", in_this_process)
    monkeypatch.setattr("spequant.app.train.run", run)
    command = ["sweep", "digits-float", "digits-w2a2-retrain", "--seeds", "0", "3", "--out", str(tmp_path)]
    main([*command, "--at-once", "8", *QUICK])
    names = ("digits-float", "digits-w2a2-retrain", "digits-float-seed3", "digits-w2a2-retrain-seed3")
    assert [folder.name for folder in run.trained] == list(names)  # all of a seed before the next one
    assert "+1.00 ± 0.00 (2 pairs)" in capsys.readouterr().out
    recipes = [json.loads((tmp_path / name / "recipe.json").read_text()) for name in names]
    assert [recipe["train"]["seed"] for recipe in recipes] == [0, 0, 3, 3]
    assert {(recipe["train"]["epochs"], recipe["train"]["threads"]) for recipe in recipes} == {(1, 1)}


@pytest.mark.slow
def test_runs_side_by_side_are_the_runs_alone(tmp_path, capfd):
    out = tmp_path / "runs"
    main(["sweep", "digits-float", "digits-w2a2-retrain", "--seeds", "0", "3", "--out", str(out), *QUICK])
    printed = capfd.readouterr().out
    for i, name in enumerate(("digits-float", "digits-w2a2-retrain"), 1):
        assert f"[{i}/4] {name}, seed 0  epoch 1/1" in printed and (out / name / "result.json").exists()
        assert f"[{i + 2}/4] {name}, seed 3  epoch 1/1" in printed and (out / f"{name}-seed3/result.json").exists()
    assert "(2 pairs)" in printed
    seen = (out / "digits-float-seed3/result.json").stat().st_mtime_ns
    main(["train", "digits-float", *QUICK, "--train.seed", "3", "--out", str(tmp_path / "alone")])
    alone = (tmp_path / "alone/model.safetensors").read_bytes()
    assert alone == (out / "digits-float-seed3/model.safetensors").read_bytes()
    main(["sweep", "digits-float", "--seeds", "3", "--out", str(out), *QUICK])  # finished: kept
    assert (out / "digits-float-seed3/result.json").stat().st_mtime_ns == seen


def fails_beside_another(tmp_path, printed) -> None:
    out, few = tmp_path / "runs", [*QUICK, "--data.images", "64"]
    good = Job("digits-float", out / "good", ("train", "digits-float", *few, "--out", str(out / "good"), "--resume"))
    bad = Job(
        "digits-float", out / "bad", ("train", "digits-float", "--data.held-out", "9999", "--out", str(out / "bad"))
    )
    with pytest.raises(ChildProcessError, match=r"runs/bad \(exit 1\);"):
        run_sweep([bad, good], 1)
    assert re.search(r"(bad  )?spequant train: held_out is 9999", printed.readouterr().out)
    assert (out / "good/result.json").exists() and not (out / "bad").exists()


def test_one_that_fails_costs_no_other(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr("spequant.app.studies.sweep.side_by_side", in_this_process)
    fails_beside_another(tmp_path, capfd)


@pytest.mark.slow
def test_a_process_that_fails_costs_no_other(tmp_path, capfd):
    fails_beside_another(tmp_path, capfd)


@pytest.mark.slow
def test_interrupted_saves_and_goes_on(tmp_path):
    """In a process of its own, as signals go to the main thread of one."""
    out = tmp_path / "runs"
    options = ["--out", str(out), *QUICK, "--train.epochs", "20"]
    command = [sys.executable, "-m", "spequant", "sweep", "digits-float", *options, "--seeds", "0"]
    process = subprocess.Popen([*command, "1", "2"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    end = time.monotonic() + 120
    while not list((out / "digits-float").glob("checkpoints/step-*")):
        if time.monotonic() > end or process.poll() is not None:
            process.kill()
            pytest.fail(f"no checkpoint: {process.communicate()[0]}")
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=120)[0]
    assert process.returncode == 130 and "spequant sweep: interrupted; the same command goes on" in printed
    assert not (out / "digits-float-seed2").exists()  # nothing is begun after it
    assert subprocess.run(command, capture_output=True, timeout=240).returncode == 0
    rows = [json.loads(line) for line in (out / "digits-float/metrics.jsonl").read_text().splitlines()]
    kinds = [row["kind"] for row in rows]
    assert "resumed" in kinds and kinds[-1] == "result"


def test_the_first_recipe_is_the_one_compared_with(tmp_path, monkeypatch, capfd):
    """Also where its first run failed."""
    jobs, base = [], RECIPES["digits-w2a2-speq"]()
    for seed, recipe in ((0, "one"), (0, "two"), (1, "one"), (1, "two")):
        folder = tmp_path / f"{recipe}-{seed}"
        seeded = replace(base, name=recipe, train=replace(base.train, seed=seed))
        finished(folder, seeded, test_accuracy=50.0 + (recipe == "two"))
        jobs.append(Job(recipe, folder, ()))
    monkeypatch.setattr("spequant.app.studies.sweep.side_by_side", lambda jobs, at_once: [1, 0, 0, 0])
    with pytest.raises(ChildProcessError, match="one-0"):
        run_sweep(jobs, 2)
    assert "+1.00 (1 pair)" in capfd.readouterr().out


def test_a_sweep_that_cannot_compare_trains_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.special", None)
    monkeypatch.setattr("spequant.app.studies.sweep.side_by_side", lambda jobs, at_once: pytest.fail("it began"))
    with pytest.raises(SystemExit, match=r"pip install 'spequant\[report\]'"):
        main(["sweep", "digits-float", "digits-w2a2-retrain", "--seeds", "0", "1", "--out", str(tmp_path), *QUICK])
    monkeypatch.setattr("spequant.app.studies.sweep.side_by_side", lambda jobs, at_once: [1] * len(jobs))
    for one in (["digits-float", "--seeds", "0", "1"], ["digits-float", "digits-w2a2-retrain", "--seeds", "0"]):
        with pytest.raises(SystemExit, match="exit 1"):  # without an interval it begins
            main(["sweep", *one, "--out", str(tmp_path), *QUICK])


@pytest.mark.parametrize(
    ("args", "named"),
    [
        ([], "no recipe"),
        (["digits-flot"], "recipe is 'digits-flot'; did you mean digits-float"),
        (["digits-float", "--train.seed", "1"], "no --train.seed.* --seeds"),
        (["digits-float", "--resume"], "no --train.seed, --resume"),
        (["digits-float", "--dry_run"], "--resume or --dry-run"),
        (["digits-float", "--train.layers-every", "1"], r"train\.layers_every is 1; expected"),
        (["digits-float", "--at-once", "0"], "at_once is 0; expected 1"),
        (["digits-float", "--seeds"], "seeds is empty.* --seeds 0 1 2"),
        (["digits-float", "--seeds", "0", "0"], "two runs .*/runs/digits-float; "),
        ([*list(RECIPES)[:2], "--name", "x"], "two runs .*/runs/x, .* no --name"),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(args, named, tmp_path):
    with pytest.raises(SystemExit, match=named):
        main(["sweep", *args, "--out", str(tmp_path / "runs")] if args else ["sweep"])
    assert not (tmp_path / "runs").exists()
