"""Runs that are killed, interrupted or damaged, and what a checkpoint refuses."""

import json
import os
import pickle
import random
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import spequant
from spequant import cli, terminal
from spequant.cli import main
from spequant.models import CifarResNet, load_weights, resnet8
from spequant.quantizers import PACT, SAWB
from spequant.recipes import RECIPES, run
from spequant.recipes import folder as run_folder
from spequant.recipes.build import with_seed
from spequant.train import Interrupted, TrainingState, make_optimizer, make_schedule, parameter_groups
from spequant.train.checkpoint import checkpoints, read

KILLER = Path(__file__).parents[1] / "support" / "killer.py"


def killed_runs(folder: Path, kills: int, points: str) -> list[dict]:
    command = [sys.executable, str(KILLER), str(folder), str(kills), points]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    trials = json.loads(done.stdout.splitlines()[-1])["trials"]
    assert all(trial["equal"] and trial["killed"] for trial in trials), trials
    return trials


def test_a_killed_run_resumes_to_equal_weights(tmp_path):
    assert len(killed_runs(tmp_path, 1, "9,12")) == 3  # within the first checkpoint's write, and the second's


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_twenty_kills_and_one_at_each_point_of_writing(tmp_path):
    trials = killed_runs(tmp_path, 20, "all")
    assert len(trials) >= 20 + 20


def short(**changes):
    recipe = with_seed(RECIPES["digits-w2a2-speq"](), 3)
    train = replace(recipe.train, **{"epochs": 2, "checkpoint_every": 6, "batch_size": 128, **changes})
    return replace(recipe, train=train, network=replace(recipe.network, weights=None))


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run's folder as a kill at the end leaves it: checkpoints, no result."""
    folder = tmp_path_factory.mktemp("runs") / "stopped"
    run(short(), folder)
    (folder / "result.json").unlink()
    return folder


@pytest.fixture
def damaged(stopped, tmp_path):
    copy = tmp_path / "damaged"
    shutil.copytree(stopped, copy)
    return copy, checkpoints(copy / "checkpoints")[-1]


def test_a_checkpoint_holds_no_pickle_and_two_are_kept(stopped):
    kept = checkpoints(stopped / "checkpoints")
    assert [p.name for p in kept] == ["step-00000018", "step-00000020"]
    assert sorted(p.name for p in kept[-1].iterdir()) == ["state.json", "tensors.safetensors"]
    snapshot, facts = read(kept[-1])
    assert snapshot.numbers["step"] == 20 and snapshot.numbers["method"] == {"step": 20}
    assert any(name.endswith("momentum_buffer") for name in snapshot.part("optimizer"))
    assert facts["recipe"]["train"]["seed"] == 3
    assert not [p for p in stopped.rglob(".tmp-*")]


def test_every_flipped_bit_and_every_cut_is_noticed(damaged):
    _, checkpoint = damaged
    draw = random.Random(0)
    for name in ("tensors.safetensors", "state.json"):
        path = checkpoint / name
        whole = path.read_bytes()
        header = 8 + int.from_bytes(whole[:8], "little") if name.endswith("safetensors") else len(whole)
        places = [draw.randrange(header) for _ in range(40)] + [draw.randrange(len(whole)) for _ in range(40)]
        for place in places:
            flipped = bytearray(whole)
            flipped[place] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=r"damaged|bytes; expected|lacks|holds the tensor|format is"):
                read(checkpoint)
        for size in (0, 1, len(whole) // 2, len(whole) - 1):
            path.write_bytes(whole[:size])
            with pytest.raises(ValueError, match=r"damaged|bytes; expected"):
                read(checkpoint)
        path.write_bytes(whole)
    read(checkpoint)


def test_a_damaged_tensor_is_named_with_what_to_do(damaged):
    folder, checkpoint = damaged
    path = checkpoint / "tensors.safetensors"
    whole = bytearray(path.read_bytes())
    header = json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    at = 8 + int.from_bytes(whole[:8], "little") + header["model.linear.layer.bias"]["data_offsets"][0]
    whole[at] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"tensor model\.linear\.layer\.bias is damaged.*remove this folder to go on"):
        run(short(), folder, resume=True)
    shutil.rmtree(checkpoint)
    assert run(short(), folder, resume=True)["seed"] == 3  # from the one before it


def test_another_recipe_network_bits_or_format_is_refused(damaged):
    folder, checkpoint = damaged
    with pytest.raises(ValueError, match=r"train\.lr is 0\.04, expected 0\.5"):
        run(short(lr=0.5), folder, resume=True)
    other = short()
    with pytest.raises(ValueError, match=r"quant\.act_bits is 2, expected 4"):
        run(replace(other, quant=replace(other.quant, act_bits=4)), folder, resume=True)
    snapshot, _ = read(checkpoint)
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(ValueError, match="format is 2; this version reads 1"):
        run(other, folder, resume=True)

    def into(network, bits):
        model = spequant.prepare(network, weight=SAWB(bits), act=PACT(bits))
        spequant.calibrate(model, [torch.rand(64, 1, 8, 8)], samples=64)
        optimizer = make_optimizer("sgd", parameter_groups(model, lr=0.1, weight_decay=0))
        return TrainingState(model, spequant.SPEQ(), optimizer, make_schedule("one-cycle", optimizer, 20))

    into(resnet8(in_channels=1), 2).restore(snapshot)
    with pytest.raises(ValueError, match=r"holds a quantizer of 2 bits, the model one of 3"):
        into(resnet8(in_channels=1), 3).restore(snapshot)
    with pytest.raises(ValueError, match=r"model\.conv1\.layer\.weight is float32 of shape \(16, 1, 3, 3\); expected"):
        into(CifarResNet(1, in_channels=1, widths=(8, 16, 32)), 2).restore(snapshot)
    with pytest.raises(ValueError, match=r"is missing; expected|was found; expected no such"):
        into(CifarResNet(2, in_channels=1), 2).restore(snapshot)


def test_a_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"conv1.weight": Evil()}))
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.th")
    for name in ("evil.pt", "evil.th"):
        with pytest.raises(ValueError, match="no readable weight file"):
            load_weights(resnet8(), tmp_path / name)
    assert not (tmp_path / "executed").exists()


def test_folders_that_cannot_take_a_run(stopped, tmp_path, monkeypatch):
    with pytest.raises(FileExistsError, match="not finished; go on with --resume"):
        run(short(), stopped)
    with FileLock(stopped / ".lock"), pytest.raises(OSError, match="in use by another run"):
        run(short(), stopped, resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to"):
        run(short(), tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == ""


FULL = """
import resource, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
torch.set_num_threads(1)
from spequant.recipes import RECIPES, run
from spequant.recipes import folder as run_folder
from spequant.train import loop
recipe = RECIPES["digits-w2a2-speq"]()
recipe = replace(recipe, network=replace(recipe.network, weights=None))
recipe = replace(recipe, train=replace(recipe.train, epochs=1, checkpoint_every=4, device="cpu"))
class Full:
    def epoch(self, row): pass
    def step(self, progress):
        if progress.step == 10:
            resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run(recipe, Path(sys.argv[1]), Full())
"""


def test_a_full_disk_keeps_the_last_good_checkpoint(tmp_path):
    folder = tmp_path / "run"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", FULL, str(folder)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert re.search(
        r"OSError: checkpoint .*step-00000012 could not be written .*last good one is .*-00000008", done.stderr
    )
    kept = checkpoints(folder / "checkpoints")
    assert [p.name for p in kept] == ["step-00000004", "step-00000008"] and read(kept[-1])
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
    assert "interrupted after step 13; saved in runs/digits-float-seed1" in said
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
    assert "interrupted after step 10; saved in runs/digits-float" in capsys.readouterr().err
    assert not (tmp_path / "runs/digits-float/result.json").exists()
    main([*arguments, "--resume"])  # nothing is left to train
    assert (tmp_path / "runs/digits-float/result.json").exists()


@pytest.mark.parametrize(("stopped_by", "said"), [(KeyboardInterrupt(), "interrupted"), (Interrupted(7), "step 7")])
def test_ctrl_c_beside_the_loop_says_how_to_go_on_as_well(stopped_by, said, monkeypatch, capsys):
    def stop(*_, **__):
        raise stopped_by

    monkeypatch.setattr(cli, "run", stop)
    with pytest.raises(SystemExit) as stopped:
        main(["train", "digits-float", "--out", "a b"])
    assert stopped.value.code == 130
    told = capsys.readouterr().err
    assert said in told and told.endswith("To go on: spequant train digits-float --out 'a b' --resume\n")


def test_dry_run_says_what_it_would_take_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    main(["train", "digits-float", "--train.epochs", "7", "--data.held-out", "97", "--dry-run"])
    said = capsys.readouterr().out
    assert "1200 to train, 97 held out, 500 to test" in said and "steps       126 in 7 epochs" in said
    assert re.search(r"memory\s+\d+ MiB", said) and re.search(r"time\s+0\.\d\d hours", said)
    assert list(tmp_path.iterdir()) == []


def test_a_tracker_by_name_gets_what_metrics_get(tmp_path, monkeypatch):
    folder = tmp_path / "run"
    monkeypatch.setattr(run_folder, "_version", lambda package: None)  # as of packages that are not installed
    run(short(tracker="tensorboard", checkpoint_every=None), folder)
    events = EventAccumulator(str(next(folder.rglob("events.*"))))
    events.Reload()
    epochs = [
        row for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()) if row["kind"] == "epoch"
    ]
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([row["loss"] for row in epochs], rel=1e-6)
    with pytest.raises(ValueError, match="tensorbord"):
        run(short(tracker="tensorbord"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_run_names_the_commit_of_its_own_code_alone(tmp_path, monkeypatch):
    def commit(path):
        code = "from pathlib import Path; import sys; from spequant.recipes import folder; "
        code += "folder.__file__ = sys.argv[1]; print(folder._commit())"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    installed = tmp_path / ".venv" / "folder.py"
    installed.parent.mkdir()
    installed.touch()
    (tmp_path / "mine.py").touch()
    for words in ("init -q", "add mine.py", "-c user.name=a -c user.email=b commit -qm a"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    assert commit(installed) == "None"  # in somebody's repository, whose commit says nothing of this code
    assert re.fullmatch(r"[0-9a-f]{7,}", commit(tmp_path / "mine.py"))
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path / "mine.py") == "None"
