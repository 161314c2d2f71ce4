"""`train.compile auto`: what the first steps of a run decide."""

import json
from dataclasses import replace

import pytest
import torch

from spequant.app.recipes import RECIPES
from spequant.app.recipes.command_line import options_of, parts_chosen
from spequant.app.recipes.serial import from_json, to_json
from spequant.app.runs import images, run
from spequant.app.runs.compile_choice import TIMED_EAGER, CompileChoice
from spequant.app.runs.compile_time import remember
from spequant.app.train import parsed_train
from support.reporters import Said


def recipe(**changes):
    """Few digits, four epochs of two steps."""
    base = RECIPES["digits-w2a2-retrain"]()
    data = replace(base.data, images=128, held_out=300)
    quant = replace(base.quant, percentile=99.9)
    train = replace(base.train, epochs=4, device="cpu", compile="auto", measure_every=9, **changes)
    return replace(base, data=data, quant=quant, train=train, network=replace(base.network, weights=None))


def test_compiling_pays_where_it_saves_more_than_it_takes():
    assert CompileChoice(left=1000, step=0.5, saved=0.4, cost=100.0).pays
    short = CompileChoice(left=1000, step=0.1, saved=0.4, cost=100.0)
    assert not short.pays and "100 s" in short.line() and "40 s in the 1,000 steps left" in short.line()
    assert "not" not in CompileChoice(left=9, step=99.0, saved=0.5, cost=9.0).line()


def calls_of(monkeypatch, folder, seconds) -> tuple[int, Said]:
    """How many forwards of training were compiled, in a run where compiling took `seconds` the last time."""
    calls: list[int] = []
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setattr(images, "REESTIMATE", 128)
    monkeypatch.setattr(torch, "compile", lambda model, **_: lambda *args: calls.append(1) or model(*args))
    remember(recipe(), torch.device("cpu"), seconds)
    run(recipe(), folder / "run", said := Said())
    return len(calls), said


def test_the_first_steps_are_uncompiled_and_the_others_compiled_where_that_pays(monkeypatch, tmp_path):
    calls, said = calls_of(monkeypatch, tmp_path, 0.0)
    assert calls == 2 * 4 - TIMED_EAGER - 1
    assert len(said.lines) == 1 and "2 steps left" in said.lines[0] and "auto" in said.lines[0]
    assert "compiling the training step, about 0 s, as the last time" in said.phases


@pytest.mark.slow
def test_where_compiling_takes_too_long_no_step_is_compiled(monkeypatch, tmp_path):
    calls, said = calls_of(monkeypatch, tmp_path, 1e6)
    assert calls == 0 and "not compiling" in said.lines[0]
    assert not any("compiling" in phase for phase in said.phases)


@pytest.mark.parametrize("value", [True, False, "auto"])
def test_the_three_values_are_read_from_json_and_from_words(value):
    """Of a recipe that is not compiled."""
    base = RECIPES["digits-w2a2-retrain"]()
    wanted = replace(base, train=replace(base.train, compile=value))
    assert from_json(to_json(wanted)).train.compile == value
    words = options_of(wanted, base)
    assert words == {True: ["--train.compile"], False: [], "auto": ["--train.compile", "auto"]}[value]
    assert parsed_train(base.name, words).recipe.train.compile == value


def test_other_values_are_refused():
    base = RECIPES["digits-w2a2-retrain"]()
    made = json.loads(to_json(base))
    with pytest.raises(ValueError, match="compile is 'yes'"):
        replace(base.train, compile="yes")
    with pytest.raises(ValueError, match="compile is 'yes'"):
        from_json(json.dumps({**made, "train": {**made["train"], "compile": "yes"}}))
    recipe, left = parts_chosen(base, ["--train.compile", "--train.no-compile", "--train.lr", "1"])
    assert recipe == base and left == ["--train.compile", "True", "--train.compile", "False", "--train.lr", "1"]
