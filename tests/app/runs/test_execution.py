"""Runs that are killed, interrupted or damaged: what they leave, and how they go on."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from spequant.app import terminal
from spequant.app.cli import main
from spequant.app.recipes import RECIPES
from spequant.app.recipes.serial import from_json
from spequant.app.runs import folder as run_folder
from spequant.app.runs import run
from spequant.train import Interrupted
from spequant.train.checkpoint import checkpoints
from support.forks import forked
from support.killer import killed

ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}


def test_a_killed_run_resumes_to_equal_weights(tmp_path):
    trials = forked(killed, tmp_path, 1, [9, 12])  # within the first checkpoint's write, and the second's
    assert len(trials) == 3 and all(trial["equal"] and trial["killed"] for trial in trials), trials


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_and_one_at_each_point_of_writing(tmp_path):
    trials = forked(killed, tmp_path, 20, None)
    assert len(trials) >= 20 + 20 and all(trial["equal"] and trial["killed"] for trial in trials), trials


@pytest.fixture
def stopped(digits_run, tmp_path):
    """(recipe, folder) of a run as a kill at the end leaves it: checkpoints, no result."""
    folder = tmp_path / "stopped"
    shutil.copytree(digits_run, folder)
    (folder / "result.json").unlink()
    return from_json((folder / "recipe.json").read_text()), folder


def test_what_a_run_leaves_in_its_checkpoints(digits_run):
    kept = checkpoints(digits_run / "checkpoints")
    assert [p.name for p in kept] == ["step-00000012", "step-00000016"]
    for path in kept:
        assert sorted(p.name for p in path.iterdir()) == ["state.json", "tensors.safetensors"]
    assert not [p for p in digits_run.rglob(".tmp-*")]


def test_with_its_last_checkpoint_damaged_a_run_goes_on_from_the_one_before(stopped, digits_run):
    recipe, folder = stopped
    checkpoint = checkpoints(folder / "checkpoints")[-1]
    path = checkpoint / "tensors.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"step-00000016.* is damaged.*remove this folder"):
        run(recipe, folder, resume=True)
    shutil.rmtree(checkpoint)
    result, expected = run(recipe, folder, resume=True), json.loads((digits_run / "result.json").read_text())
    assert {**result, "seconds": 0} == {**expected, "seconds": 0}
    a, b = (load_file(place / "model.safetensors") for place in (folder, digits_run))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_another_recipe_is_refused(stopped):
    recipe, folder = stopped
    with pytest.raises(ValueError, match=r"train\.lr is 0\.04, expected 0\.5"):
        run(replace(recipe, train=replace(recipe.train, lr=0.5)), folder, resume=True)
    with pytest.raises(ValueError, match=r"quant\.act_bits is 2, expected 4"):
        run(replace(recipe, quant=replace(recipe.quant, act_bits=4)), folder, resume=True)


FULL = """
import resource, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from spequant.app.recipes import RECIPES
from spequant.app.runs import Quiet, run
from spequant.app.runs import folder as run_folder
from spequant.train import loop
recipe = RECIPES["digits-w2a2-speq"]()
recipe = replace(recipe, network=replace(recipe.network, weights=None))
recipe = replace(recipe, train=replace(recipe.train, epochs=1, checkpoint_every=4, device="cpu"))
class Full(Quiet):
    def step(self, progress):
        if progress.step == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run(recipe, Path(sys.argv[1]), Full())
"""


@pytest.mark.slow
def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "run"
    command = [sys.executable, "-c", FULL, str(folder)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert re.search(
        r"OSError: checkpoint .*step-00000012 could not be written .*last good one is .*-00000008", done.stderr
    )
    kept = checkpoints(folder / "checkpoints")
    assert [p.name for p in kept] == ["step-00000004", "step-00000008"]
    assert [p.name for p in (folder / "checkpoints").iterdir() if p.name.startswith(".")] == []


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["digits-float", "--train.epochs", "2", "--train.batch-size", "128", "--train.seed", "1"]
    main(["train", *arguments, "--out", "alone"])
    step, handler = terminal.Terminal.step, signal.getsignal(signal.SIGINT)

    def interrupt(self, progress):
        if (progress.epoch, progress.step) == (1, 3):
            os.kill(os.getpid(), signal.SIGINT)
        step(self, progress)

    monkeypatch.setattr(terminal.Terminal, "step", interrupt)
    with pytest.raises(SystemExit) as stopped:
        main(["train", *arguments])
    assert stopped.value.code == 130
    said = capsys.readouterr().err
    assert "step 13" in said and "runs/digits-float-seed1" in said
    again = said.split("To go on: ")[1].split()
    assert again[-1] == "--resume" and signal.getsignal(signal.SIGINT) is handler
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    main(["runs"])
    assert re.search(r"digits-float-seed1\s.*digits-float\s.*stopped\s.* 1/2", capsys.readouterr().out)
    main(again[1:])
    a, b = (load_file(tmp_path / d / "model.safetensors") for d in ("alone", "runs/digits-float-seed1"))
    assert all(torch.equal(a[k], b[k]) for k in a)
    main(["runs"])
    assert re.search(r"digits-float-seed1\s.*finished\s.* 2/2\s.*\d\d\.\d\d", capsys.readouterr().out)
    starts = json.loads((tmp_path / "runs/digits-float-seed1/environment.json").read_text())
    assert len(starts) == 2 and all(s["torch"] and s["command"] and s["processes"] == 1 for s in starts)


def test_ctrl_c_while_the_last_epoch_is_measured_is_not_lost(tmp_path, monkeypatch, capsys):
    epoch = terminal.Terminal.epoch

    def interrupt(self, row):
        os.kill(os.getpid(), signal.SIGTERM)
        epoch(self, row)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(terminal.Terminal, "epoch", interrupt)
    arguments = ["train", "digits-float", "--train.epochs", "1", "--train.batch-size", "128"]
    with pytest.raises(SystemExit):
        main(arguments)
    assert re.search(r"step 10\b.* runs/digits-float", capsys.readouterr().err)
    assert not (tmp_path / "runs/digits-float/result.json").exists()
    main([*arguments, "--resume"])  # nothing is left to train
    assert (tmp_path / "runs/digits-float/result.json").exists()


@pytest.mark.parametrize(("stopped_by", "said"), [(KeyboardInterrupt(), "interrupted"), (Interrupted(7), "step 7")])
def test_ctrl_c_beside_the_loop_says_how_to_go_on_as_well(stopped_by, said, monkeypatch, capsys):
    def stop(*_, **__):
        raise stopped_by

    monkeypatch.setattr("spequant.app.train.run", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "digits-float", "--out", "a b"])
    assert stopped.value.code == 130
    told = capsys.readouterr().err
    assert said in told and told.endswith("To go on: spequant train digits-float --out 'a b' --resume\n")


AFTER_ANOTHER = """
import functools, sys, torch
from dataclasses import replace
from pathlib import Path
from spequant.app.recipes import RECIPES
from spequant.app.runs import run
from spequant.methods import ExtendedSPEQ

torch.compile = functools.partial(torch.compile, backend="eager")
base = RECIPES["digits-w2a2-speq"]()
short = replace(base.train, epochs=1, compile=True, threads=1)
base = replace(base, network=replace(base.network, weights=None), data=replace(base.data, images=128), train=short)
run(base, Path(sys.argv[1]) / "first")
features = replace(base, method=ExtendedSPEQ.Settings(feature_weight=0.5))
run(features, Path(sys.argv[1]) / "second")
print("done")
"""


@pytest.mark.slow
def test_a_run_after_another_compiles_a_network_of_its_own(tmp_path):
    """What was compiled for the first has no hooks that look inside, and fits the second's network, too."""
    command = [sys.executable, "-c", AFTER_ANOTHER, str(tmp_path)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["done"], done.stderr


def short(**changes):
    """Two epochs of two steps from random weights."""
    recipe = RECIPES["digits-w2a2-speq"]()
    train = replace(recipe.train, **{"epochs": 2, "batch_size": 128, "threads": 1, **changes})
    return replace(
        recipe, train=train, data=replace(recipe.data, images=256), network=replace(recipe.network, weights=None)
    )


@pytest.mark.slow
def test_a_tracker_by_name_gets_what_metrics_get(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    def absent(package):
        raise run_folder.PackageNotFoundError(package)

    folder = tmp_path / "run"
    monkeypatch.setattr(run_folder, "version", absent)  # trackers take no None
    recipe = short(tracker="tensorboard")
    run(recipe, folder)
    events = EventAccumulator(str(next(folder.rglob("events.*"))))
    events.Reload()
    epochs = [
        row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "epoch"
    ]
    assert len(epochs) == 2
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([row["loss"] for row in epochs], rel=1e-6)
    with pytest.raises(ValueError, match="tensorbord"):
        run(short(tracker="tensorbord"), tmp_path / "other")
    assert not (tmp_path / "other").exists()
