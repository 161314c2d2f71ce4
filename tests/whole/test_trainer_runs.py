"""A run of Hugging Face's Trainer: saved whole, stopped and resumed, on two processes, compiled, as in the example."""

import json
import os
import re
import runpy
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import spequant
from spequant.integrations import load_checkpoint
from spequant.methods.tasks import SpanExtraction
from spequant.quantizers import LSQPlus, Quantizer
from support.tokenizer import VOCABULARY, entry, file_of, small_tokenizer
from support.trainers import At, copied, equal_states, interrupt, little_garbage, prepared, trainer
from support.transformers_networks import answering, inputs, tokens

TESTS = Path(__file__).parents[1]
EXAMPLE = TESTS.parent / "examples" / "squad_trainer.py"
SAVED = {"save_strategy": "steps", "save_steps": 1, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}


@pytest.fixture(scope="module", autouse=True)
def quick_starts():
    with little_garbage():
        yield


# --- checkpoints -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """(folder, network, method) of a run with dropout, a checkpoint each step, three steps of two parts an epoch."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    method = spequant.SPEQ(task=SpanExtraction())
    run = trainer(folder, prepared(), method, changes=SAVED)
    run.train()
    return folder, run.model, method


@pytest.mark.parametrize(("step", "calibrate"), [(3, True), (4, False)])
def test_a_resumed_run_ends_with_equal_weights(uninterrupted, step, calibrate, tmp_path):
    folder, whole, speq = uninterrupted
    model, method = prepared(calibrate=calibrate), spequant.SPEQ(task=SpanExtraction())
    run = trainer(tmp_path, model, method, changes=SAVED)
    run.train(resume_from_checkpoint=str(folder / f"checkpoint-{step}"))
    assert run.state.global_step == 6 and method.step == speq.step == 12
    assert equal_states(model.state_dict(), whole.state_dict())


def test_a_run_that_was_stopped_goes_on_to_equal_weights(uninterrupted, tmp_path):
    _, whole, _ = uninterrupted
    stop = At("on_step_begin", interrupt, step=4)
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, changes=SAVED, callbacks=[stop]).train()
    run = trainer(tmp_path, prepared(seed=1), changes=SAVED)
    assert not equal_states(run.model.state_dict(), whole.state_dict())
    run.train(resume_from_checkpoint=True)
    assert equal_states(run.model.state_dict(), whole.state_dict())


def test_draws_that_began_anew_would_end_with_other_weights(uninterrupted, tmp_path):
    folder, whole, _ = uninterrupted
    again = tmp_path / "checkpoint-3"
    again.mkdir()
    for file in (folder / "checkpoint-3").iterdir():
        (again / file.name).write_bytes(file.read_bytes())
    assert json.loads((again / "method.json").read_text()) == {"step": 6}
    (again / "method.json").write_text('{"step": 0}')
    run = trainer(tmp_path, changes=SAVED)
    run.train(resume_from_checkpoint=str(again))
    assert not equal_states(run.model.state_dict(), whole.state_dict())
    (again / "method.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"method\.json does not exist; .*SPEQ"):
        trainer(tmp_path, changes=SAVED).train(resume_from_checkpoint=str(again))


@torch.no_grad()
def shuffled(model):
    """All that is trained or counted, at random; the ranges above all."""
    for parameter in model.parameters():
        parameter.copy_(torch.rand_like(parameter) + 0.5)
    return model


def deep(kind):
    """A network of two layers; ALBERT's are one."""
    return answering(kind, **{"n_layers" if kind == "distilbert" else "num_hidden_layers": 2})


@pytest.mark.parametrize(
    "kind", ["bert", "albert", *(pytest.param(k, marks=pytest.mark.slow) for k in ("distilbert", "roberta", "electra"))]
)
def test_a_saved_network_is_loaded_whole(kind, tmp_path):
    model = prepared(deep(kind))
    shared = len({id(q) for m in model.modules() for q in vars(m)["_modules"].values() if isinstance(q, Quantizer)})
    slots = sum(isinstance(q, Quantizer) for m in model.modules() for q in vars(m)["_modules"].values())
    assert shared < slots  # query, key and value have one
    trainer(tmp_path, model).save_model()
    with torch.no_grad():
        expected = copied(model)
    assert equal_states(type(model).from_pretrained(tmp_path).state_dict(), expected)
    for other in (shuffled(prepared(deep(kind), seed=1)), prepared(deep(kind), calibrate=False)):
        assert not equal_states(other.state_dict(), expected)
        load_checkpoint(other, tmp_path)
        assert equal_states(other.state_dict(), expected)
        batch = inputs(tokens())
        assert torch.equal(other.eval()(**batch).end_logits, model.eval()(**batch).end_logits)


def test_the_best_network_is_loaded_whole_at_the_end(tmp_path):
    states, scores = {}, iter([0.1, 0.7, 0.3])
    run = trainer(
        tmp_path,
        compute_metrics=lambda found: {"score": next(scores)},
        changes={
            "max_steps": 3,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
            "metric_for_best_model": "score",
        },
    )
    run.add_callback(At("on_step_end", lambda m: states.update({run.state.global_step: copied(m)})))
    run.train()
    assert run.state.best_model_checkpoint.endswith("checkpoint-2")
    assert equal_states(run.model.state_dict(), states[2])
    assert not equal_states(states[3], states[2]) and run.method.step == 3


def test_a_best_network_that_is_damaged_is_named(tmp_path):
    def damage(model):
        file = tmp_path / "checkpoint-1" / "model.safetensors"
        save_file({n: t for n, t in load_file(file).items() if n != "qa_outputs.bias"}, file, {"format": "pt"})

    changes = {"max_steps": 1, "eval_strategy": "steps", "save_strategy": "steps", "load_best_model_at_end": True}
    run = trainer(tmp_path, callbacks=[At("on_save", damage)], changes={**changes, "eval_steps": 1, "save_steps": 1})
    with pytest.raises(ValueError, match=r"checkpoint-1.*qa_outputs\.bias"):
        run.train()


def test_what_cannot_be_loaded_whole_is_refused(tmp_path):
    trainer(tmp_path / "apart", prepared(calibrate=False)).save_model()
    with pytest.raises(ValueError, match=r"apart.model\.safetensors: .*share a quantizer"):
        load_checkpoint(prepared(), tmp_path / "apart")
    trainer(tmp_path / "whole").save_model()
    file = tmp_path / "whole" / "model.safetensors"
    tensors = load_file(file)
    content, run = file.read_bytes(), trainer(tmp_path / "whole")
    save_file({n: t for n, t in tensors.items() if n != "spequant.4.step"}, file, {"format": "pt"})
    message = r"model\.safetensors: .*key\.act_quantizer \(spequant\.4\).*step"
    with pytest.raises(ValueError, match=message):
        load_checkpoint(prepared(), tmp_path / "whole")
    with pytest.raises(ValueError, match=message):
        run.train(resume_from_checkpoint=str(tmp_path / "whole"))
    file.write_bytes(content[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged "):
        load_checkpoint(prepared(), tmp_path / "whole")
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r" 4 bits, .* 3"):
        load_checkpoint(prepared(act=LSQPlus(3)), tmp_path / "whole")
    with pytest.raises(ValueError, match=r"nothing.model\.safetensors does not exist"):
        trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "nothing"))


def test_a_methods_state_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    run = trainer(tmp_path)
    run.save_model()
    run.method.step = 7
    moved = os.replace

    def broken(source, target):
        if Path(target).name == "method.json":
            raise OSError("the disk is full")
        moved(source, target)

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="the disk is full"):
        run.save_model()
    assert json.loads((tmp_path / "method.json").read_text()) == {"step": 0}
    assert not list(tmp_path.glob(".tmp-*"))


# --- processes, compilers, the example ---------------------------------------------------------------------------


def launched(folder, world):
    folder.mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": str(world)}
    paths = os.pathsep.join([str(TESTS), *sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    processes = []
    for rank in range(world):
        here = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {}
        command = [sys.executable, str(TESTS / "support" / "trainer_rank.py"), str(folder)]
        processes.append(
            subprocess.Popen(command, env={**environment, **here}, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        )
    said = [process.communicate()[1] for process in processes]
    assert not any(process.returncode for process in processes), said[0].decode()[-4000:]
    return json.loads((folder / "found.json").read_text())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_two_processes_and_a_compiler_train_as_one_process_without(tmp_path):
    one, two = launched(tmp_path / "one", 1), launched(tmp_path / "two", 2)
    kinds = [found["wrapped"] for run in (one, two) for found in run.values()]
    bert, parallel, compiled = "BertForQuestionAnswering", "DistributedDataParallel", "OptimizedModule"
    assert kinds == [bert, bert, compiled, parallel, parallel]
    for run in (one, two):
        assert all(found["equal"] and found["resumed"] for found in run.values())
        for row in [row for found in run.values() for row in found["logs"]]:
            assert row["loss"] == pytest.approx(row["task"] + row["distill"], rel=1e-5)
    for a, b in ((one["speq"], one["compiled"]), (one["retrain"], two["retrain"])):
        x, y = (torch.tensor(found["moved"]) for found in (a, b))
        assert (x - y).norm() < 1e-3 * x.norm() and x.norm() > 0
        assert b["loss"] == pytest.approx(a["loss"], rel=1e-4)


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_the_example_trains_predicts_and_packs(tmp_path, monkeypatch, capsys):
    small_tokenizer().save_pretrained(tmp_path / "network")
    answering(vocab_size=len(VOCABULARY)).save_pretrained(tmp_path / "network")
    asked = [entry(f"q{i}", "who built the bridge", "king", 4) for i in range(12)]
    for name in ("train", "dev"):
        (tmp_path / f"{name}-v1.1.json").write_text(json.dumps(file_of(*asked, context="the king of old stone town")))
    monkeypatch.chdir(tmp_path)
    given = ["network", ".", "--questions", "10", "--steps", "3", "--out", "out"]
    monkeypatch.setattr(sys, "argv", [str(EXAMPLE), *given])
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    said = capsys.readouterr().out
    assert re.search(r"exact match \d+\.\d\d, F1 \d+\.\d\d on 10 questions\nout/model\.packed: 0\.0 MB", said)
    network = transformers.AutoModelForQuestionAnswering.from_pretrained(tmp_path / "network")
    packed = spequant.load_packed(tmp_path / "out" / "model.packed", network)
    assert packed(input_ids=torch.tensor([[2, 4, 3]])).start_logits.shape == (1, 3)
