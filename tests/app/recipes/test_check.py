"""What recipes are refused for: the first field whose value makes no run, or has no effect, by name."""

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.recipes import RECIPES, run
from spequant.app.recipes.check import READS, check
from spequant.app.recipes.methods import BUILDERS
from spequant.app.recipes.schema import MethodChoice, Quantization, Recipe


@pytest.mark.parametrize(
    ("choice", "named", "method"),
    [
        (MethodChoice("retrain", temperature=2.0), "method.temperature is 2.0", "retrain; expected None"),
        (MethodChoice("apprentice", weight=2.0), "method.weight is 2.0", "apprentice"),
        (MethodChoice("qfd", temperature=2.0), "method.temperature is 2.0", "qfd"),
        (MethodChoice("speq", teacher=Path("a")), "method.teacher is PosixPath('a')", "speq"),
        (MethodChoice("speq-distill", average=0.9), "method.average is 0.9", "speq-distill"),
        (
            MethodChoice("speq", mix=True, probability=1.0),
            "method.probability is 1.0",
            "speq with method.mix; expected 0.5",
        ),
    ],
)
def test_settings_that_a_method_does_not_read_are_refused(choice, named, method):
    with pytest.raises(ValueError, match=f"{re.escape(named)}, .* {re.escape(method)}"):
        check(replace(Recipe(), method=choice))


@pytest.mark.parametrize(
    ("part", "settings", "named"),
    [
        ("train", {"momentum": 1.5}, "train.momentum is 1.5; expected 0 or more, below 1"),
        ("train", {"momentum": 0.5, "optimizer": "adamw"}, "train.momentum is 0.5; expected 0.9: adamw"),
        ("train", {"lr": math.inf}, "train.lr is inf; expected .* above 0"),
        ("train", {"freeze_threshold": -1.0}, "train.freeze_threshold is -1.0; expected .* between 0 and 1"),
        (
            "train",
            {"freeze_threshold": 0.1, "freeze_threshold_end": 0.0},
            "train.freeze_threshold_end is 0.0; expected .* between 0 and 1",
        ),
        ("quant", {"weight_bits": None, "act_bits": None, "ewgs": 0.1}, "quant.ewgs is 0.1; expected 0.0"),
        ("network", {"weights": None, "new_head": True}, "network.new_head is True; expected False.*--network.weights"),
        ("data", {"images": 0}, "data.images is 0; expected 1 or more, or None"),
        ("data", {"held_out": -1}, "data.held_out is -1; expected 0 or more"),
        (
            "data",
            {"name": "folder", "augment": True, "auto_augment": "rand-m9", "color_jitter": 0.4},
            "data.color_jitter is 0.4.* data.auto_augment .*expected None",
        ),
    ],
)
def test_settings_without_sense_or_effect_are_refused(part, settings, named):
    recipe = replace(RECIPES["digits-w2a2-speq"](), method=MethodChoice("retrain"))
    check(recipe)
    with pytest.raises(ValueError, match=named):
        check(replace(recipe, **{part: replace(getattr(recipe, part), **settings)}))


@pytest.mark.parametrize("name", ["distill", "speq-distill", "apprentice", "sqakd", "qfd", "gslr", "block-replacement"])
def test_a_teacher_that_has_learned_nothing_is_refused(name):
    recipe = replace(RECIPES["digits-w2a2-speq"](), method=MethodChoice(name))
    check(recipe)
    random = replace(recipe, network=replace(recipe.network, weights=None))
    with pytest.raises(ValueError, match=r"method\.teacher is None .* random weights.* --network\.weights"):
        check(random)
    with pytest.raises(ValueError, match=r"method\.teacher is None .* new head"):
        check(replace(recipe, network=replace(recipe.network, new_head=True)))
    check(replace(random, method=MethodChoice(name, teacher=Path("float"))))
    check(replace(random, method=MethodChoice("apprentice", joint=True)))  # which learns
    check(replace(random, method=MethodChoice("qkd")))


def test_every_method_says_what_it_reads():
    assert set(READS) == set(BUILDERS)
    assert all(hasattr(MethodChoice, name) for names in READS.values() for name in names)


def test_overrides_of_a_float_network_have_no_effect():
    floating = Quantization(weight_bits=None, act_bits=None, overrides=("conv1=3",))
    with pytest.raises(ValueError, match=r"quant\.overrides is \('conv1=3',\); expected \(\)"):
        check(replace(Recipe(), quant=floating, method=MethodChoice("retrain")))


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("train", "epochs", 0),
        ("train", "batch_size", 0),
        ("train", "accumulate", 0),
        ("train", "accumulate", 3),
        ("train", "freeze_threshold_end", 0.1),
        ("method", "high_bits", 2),
        ("train", "lr", -1.0),
        ("train", "weight_decay", -1.0),
        ("train", "range_lr", -0.1),
        ("train", "clip_norm", 0.0),
        ("train", "threads", 0),
        ("train", "seed", -1),
        ("train", "device", "foo"),
        ("train", "checkpoint_every", 0),
        ("quant", "percentile", 0.0),
        ("quant", "act_bits", None),
        ("data", "measure_every", 0),
    ],
)
def test_values_that_make_no_run_are_refused_by_name(part, field, value, tmp_path):
    recipe = RECIPES["digits-w2a2-speq"]()
    check(recipe)
    with pytest.raises(ValueError, match=rf"{part}\.{field} is {value!r}.*expected"):
        run(replace(recipe, **{part: replace(getattr(recipe, part), **{field: value})}), tmp_path / "run")
    assert not (tmp_path / "run").exists()
