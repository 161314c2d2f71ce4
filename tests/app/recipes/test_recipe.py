"""A recipe's parts check themselves; what two of them get wrong together is refused by the recipe, by name."""

import math
from dataclasses import replace

import pytest

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.recipe import Network
from spequant.app.recipes.training import Training
from spequant.app.runs import run
from spequant.data import CIFAR10, Digits, Folder
from spequant.methods import SPEQ, by_name

FLOAT = Quantization(weight_bits=None, act_bits=None)
RETRAIN = by_name["retrain"]()
SPEQ_ON_DIGITS = RECIPES["digits-w2a2-speq"]()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Recipe(quant=Quantization(act_bits=None)), "act_bits is None; expected bits"),
        (lambda: Recipe(method=SPEQ.Settings(high_bits=2)), "high_bits is 2; expected more than act_bits, 2"),
        (lambda: Recipe(quant=FLOAT, method=RETRAIN, train=Training(layers_every=1)), r"train\.layers_every is 1"),
        (lambda: Recipe(data=CIFAR10(mixup=0.2), train=Training(batch_size=33)), r"train\.batch_size is 33; .* even"),
        (lambda: Recipe(network=Network(name="transformers/bert")), r"network\.name is 'transformers/bert' and data"),
        (lambda: Recipe(task="nowhere:Task"), "nowhere:Task: there is no module nowhere"),
        (lambda: Recipe(task="fractions:Fraction"), "fractions:Fraction.*logits, loss, hits"),
        (lambda: Recipe(task="regresion"), "task is 'regresion'; did you mean regression"),
        (lambda: Recipe(task="detection"), "task is 'detection' and data are CIFAR10; expected classification"),
        (lambda: Recipe(task="span-extraction"), "task is 'span-extraction' and data are CIFAR10"),
    ],
)
def test_parts_that_do_not_go_together_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("train", "epochs", 0),
        ("train", "batch_size", 0),
        ("train", "accumulate", 0),
        ("train", "accumulate", 3),
        ("train", "freeze_threshold_end", 0.1),
        ("train", "freeze_threshold", -1.0),
        ("train", "lr", -1.0),
        ("train", "lr", math.inf),
        ("train", "weight_decay", -1.0),
        ("train", "weight_decay", math.inf),
        ("train", "range_lr", math.inf),
        ("quant", "ewgs", math.inf),
        ("train", "range_lr", -0.1),
        ("train", "clip_norm", 0.0),
        ("train", "ema", 1.0),
        ("train", "label_smoothing", 1.0),
        ("train", "threads", 0),
        ("train", "seed", -1),
        ("train", "device", "foo"),
        ("train", "checkpoint_every", 0),
        ("train", "measure_every", 0),
        ("train", "schedule", "linear"),
        ("quant", "percentile", 0.0),
        ("quant", "weight_bits", 9),
        ("quant", "end_bits", 0),
        ("quant", "depthwise", "pakt"),
        ("quant", "ewgs", -1.0),
        ("data", "images", 0),
        ("data", "held_out", -1),
    ],
)
def test_values_that_make_no_run_are_refused_by_name(part, field, value, tmp_path):
    with pytest.raises(ValueError, match=rf"{part}\.{field} is {value!r}"):
        run(
            replace(SPEQ_ON_DIGITS, **{part: replace(getattr(SPEQ_ON_DIGITS, part), **{field: value})}),
            tmp_path / "run",
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: SPEQ.Settings(mix=True, probability=1.0), "probability is 1.0, .* with mix; expected 0.5"),
        (lambda: Quantization(weight_bits=None, act_bits=None, ewgs=0.1), r"quant\.ewgs is 0\.1; expected 0\.0"),
        (
            lambda: Quantization(weight_bits=None, act_bits=None, overrides=("conv1=3",)),
            r"quant\.overrides is \('conv1=3',\); expected \(\)",
        ),
        (lambda: Folder(auto_augment="rand-m9", color_jitter=0.4), r"data\.color_jitter is 0\.4.* data\.auto_augment"),
        (lambda: Folder(augment=False, crop_scale=0.5), r"data\.crop_scale is 0\.5, .*: data\.augment is False"),
        (lambda: Folder(workers=-1), r"data\.workers is -1"),
        (lambda: Digits(mixup=-0.1), r"mixup is -0\.1"),
        (lambda: Digits(cutmix=-1), r"cutmix is -1"),
    ],
)
def test_settings_without_sense_or_effect_are_refused_when_they_are_made(make, named):
    with pytest.raises(ValueError, match=named):
        make()


def test_a_field_that_a_part_does_not_have_cannot_be_given():
    for make, field in ((by_name["retrain"], "temperature"), (by_name["qfd"], "temperature"), (Digits, "size")):
        with pytest.raises(TypeError, match=field):
            make(**{field: 2})


def test_a_seed_is_the_trainings():
    recipe = RECIPES["digits-float"]()
    assert recipe.with_seed(7) == replace(recipe, train=replace(recipe.train, seed=7))
