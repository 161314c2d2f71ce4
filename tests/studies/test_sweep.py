"""`spequant sweep`: runs side by side, each as if alone; stopped, resumed, failed; bad input."""

import json
import signal
import subprocess
import sys
import time

import pytest

from spequant.cli import main
from spequant.recipes import RECIPES
from spequant.recipes.folder import held
from spequant.recipes.schema import to_json
from spequant.studies import side_by_side
from spequant.studies.side_by_side import Job, threads_each
from spequant.studies.sweep import run_sweep

QUICK = ["--network.weights", "None", "--train.epochs", "1", "--train.no-compile", "--train.threads", "1"]


def test_runs_side_by_side_are_the_runs_alone(tmp_path, capfd):
    out = tmp_path / "runs"
    main(["sweep", "digits-float", "digits-w2a2-retrain", "--seeds", "0", "3", "--out", str(out), *QUICK])
    printed = capfd.readouterr().out
    for name in ("digits-float", "digits-float-seed3", "digits-w2a2-retrain", "digits-w2a2-retrain-seed3"):
        assert f"{name}  epoch 1/1" in printed and (out / name / "result.json").exists()
    assert "(2 pairs)" in printed
    seen = (out / "digits-float-seed3/result.json").stat().st_mtime_ns
    main(["train", "digits-float", *QUICK, "--train.seed", "3", "--out", str(tmp_path / "alone")])
    alone = (tmp_path / "alone/model.safetensors").read_bytes()
    assert alone == (out / "digits-float-seed3/model.safetensors").read_bytes()
    main(["sweep", "digits-float", "--seeds", "3", "--out", str(out), *QUICK])  # finished: kept
    assert (out / "digits-float-seed3/result.json").stat().st_mtime_ns == seen


def test_one_that_fails_costs_no_other(tmp_path, capfd):
    out = tmp_path / "runs"
    good = Job("digits-float", out / "good", ("train", "digits-float", *QUICK, "--out", str(out / "good"), "--resume"))
    bad = Job("digits-float", out / "bad", ("train", "digits-float", "--train.lr", "-1", "--out", str(out / "bad")))
    with pytest.raises(ChildProcessError, match=r"not finished: .*bad \(exit 1\); the reasons stand above"):
        run_sweep([bad, good], 1)
    printed = capfd.readouterr().out
    assert "bad  spequant train: train.lr is -1" in printed
    assert (out / "good/result.json").exists() and not (out / "bad").exists()


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


def test_a_run_that_fails_leaves_the_folder_to_the_one_beside_it(tmp_path):
    parent = tmp_path / "runs"
    with pytest.raises(ValueError, match="its own error"), held(parent / "a", False):
        (parent / "b").mkdir()
        raise ValueError("its own error")
    assert [path.name for path in parent.iterdir()] == ["b"]


def test_the_first_recipe_is_the_one_compared_with(tmp_path, capfd):
    """Also where its first run failed."""
    jobs = []
    for seed, recipe in ((0, "one"), (0, "two"), (1, "one"), (1, "two")):
        folder = tmp_path / f"{recipe}-{seed}"
        folder.mkdir()
        result = {"recipe": recipe, "seed": seed, "test_accuracy": 50.0 + (recipe == "two"), "seconds": 1.0}
        (folder / "result.json").write_text(json.dumps(result))
        (folder / "recipe.json").write_text(to_json(RECIPES["digits-w2a2-speq"]()))
        fails = (recipe, seed) == ("one", 0)
        jobs.append(Job(recipe, folder, ("recipes", "x") if fails else ("--help",)))
    with pytest.raises(ChildProcessError, match="one-0"):
        run_sweep(jobs, 2)
    assert "+1.00 (1 pair)" in capfd.readouterr().out


def test_threads_are_divided(monkeypatch):
    monkeypatch.setattr(side_by_side.torch, "get_num_threads", lambda: 8)
    assert threads_each(1) == [] and threads_each(3) == ["--train.threads", "2"]
    assert threads_each(16) == ["--train.threads", "1"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "no recipe is given"),
        (["digits-flot"], "recipe is 'digits-flot'; did you mean digits-float"),
        (["digits-float", "--train.seed", "1"], "sweep takes no --train.seed"),
        (["digits-float", "--resume"], "sweep takes no --train.seed, --resume"),
        (["digits-float", "--dry_run"], "sweep takes no --train.seed, --resume or --dry-run"),
        (["digits-float", "--train.epochs", "0"], "train.epochs is 0; expected 1 or more"),
        (["digits-float", "--at-once", "0"], "at_once is 0; expected 1 or more"),
        (["digits-float", "--seeds"], "seeds is empty"),
        (["digits-float", "--seeds", "0", "0"], "two runs would be in "),
        ([*list(RECIPES)[:2], "--name", "x"], "two runs would be in "),
    ],
)
def test_bad_arguments_are_named_before_anything_runs(args, message, tmp_path):
    with pytest.raises(SystemExit) as error:
        main(["sweep", *args, "--out", str(tmp_path / "runs")] if args else ["sweep"])
    assert message in str(error.value) and not (tmp_path / "runs").exists()
