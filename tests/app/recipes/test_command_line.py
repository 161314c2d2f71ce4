"""A recipe on a command line: parts chosen by name, what stays of the one before, and the words that make it again."""

from dataclasses import replace

import pytest

from spequant.app.recipes import RECIPES
from spequant.app.recipes.command_line import choices, options_of, parts_chosen, parts_of, recipe_named
from spequant.app.train import parsed_train
from spequant.data import CIFAR100, Digits
from spequant.methods import QKD, SPEQ, ExtendedSPEQ, SPEQDistill
from spequant.quantizers import LSQ, PACT, LSQPlus
from spequant.train import AdamW

RECIPE = RECIPES["cifar10-5k-resnet20-w2a2-speq"]()


def parsed(*words, name=RECIPE.name):
    return parsed_train(name, words).recipe


def test_an_option_chooses_a_part():
    recipe = parsed(
        *("--method", "qkd", "--method.temperature", "3", "--data=cifar100", "--quant.weight", "lsq"),
        *("--quant.act", "lsq-plus", "--train.optimizer", "adamw", "--train.optimizer.beta1", ".8"),
    )
    assert recipe.method == QKD.Settings(temperature=3.0)
    assert recipe.data == CIFAR100(images=5120, held_out=0)  # what both sets have stays
    assert (recipe.quant.weight, recipe.quant.act) == (LSQ.Settings(), LSQPlus.Settings())
    assert recipe.train.optimizer == AdamW(beta1=0.8)


def test_a_part_that_is_chosen_already_stays():
    assert parsed("--method", "speq").method == RECIPE.method != SPEQ.Settings()


def test_only_together_options_may_be_right():
    """SPEQ on a float network, until it has bits."""
    recipe = parsed(
        "--method", "speq", "--quant.weight-bits", "2", "--quant.act-bits", "3", name="cifar10-5k-resnet20-float"
    )
    assert recipe.method == SPEQ.Settings() and recipe.quant.act_bits == 3


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--method", "retrain", "--method.temperature", "2"), "method.temperature"),
        (("--method.passes", "0"), "passes is 0"),
        (("--data", "digits", "--data.root", "x"), "data.root"),
    ],
)
def test_a_setting_that_the_part_does_not_have_or_refuses_ends_the_command(words, named, capsys):
    with pytest.raises(SystemExit):
        parsed(*words)
    captured = capsys.readouterr()
    assert named in "".join((captured.out + captured.err).split("\n")).replace("│", "").replace("  ", " ")


def test_parts_that_do_not_go_together_are_refused():
    with pytest.raises(ValueError, match="act_bits is None"):
        parsed("--quant.act-bits", "None")


def test_a_function_that_needs_something_makes_no_recipe(tmp_path):
    (tmp_path / "mine.py").write_text("def wide(width):\n    return width\n")
    with pytest.raises(ValueError, match=r"mine\.py:wide needs width"):
        recipe_named(f"{tmp_path / 'mine.py'}:wide")


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--method", "qkdd"), "method is 'qkdd'; did you mean qkd"),
        (("--quant.weight", "swab"), r"quant\.weight is 'swab'; did you mean sawb"),
        (("--train.optimizer", "adam"), r"train\.optimizer is 'adam'; did you mean adamw"),
        (("--method",), "--method has no value"),
        (("--method", "--resume"), "--method has no value"),
    ],
)
def test_a_name_that_chooses_nothing_is_refused(words, named):
    with pytest.raises(ValueError, match=named):
        parts_chosen(RECIPE, words)


@pytest.mark.parametrize(
    "other",
    [
        replace(RECIPE, method=QKD.Settings(temperature=3.0)),
        replace(RECIPE, method=ExtendedSPEQ.Settings(speq=SPEQ.Settings(passes=2), average=0.9)),
        replace(RECIPE, method=SPEQDistill.Settings(speq=SPEQ.Settings(mix=True))),
        replace(RECIPE, data=Digits(augment=False, held_out=7)),
        replace(RECIPE, quant=replace(RECIPE.quant, act=PACT.Settings(decay=1e-3), overrides=("a=3", "b=4/8"))),
        replace(RECIPE, quant=replace(RECIPE.quant, weight=LSQ.Settings(), end_bits=None)),
        replace(RECIPE, train=replace(RECIPE.train, optimizer=AdamW(beta2=0.99), compile=False, lr=1e-4)),
        replace(RECIPE, network=replace(RECIPE.network, name="resnet32", weights=None)),
        RECIPES["cifar100-mobilenetv2-w4a4-speq"](),
        RECIPES["digits-w2a2-speq"](),
    ],
)
def test_the_words_of_a_recipe_make_it_again(other):
    words = options_of(other, RECIPE)
    assert replace(parsed(*words), name=other.name) == other
    assert not options_of(RECIPE, RECIPE)


def test_help_shows_the_settings_of_the_chosen_method_and_no_others(capsys):
    cases = ("qkd", "--method.temperature", "--method.high-bits"), ("retrain", "", "--method.")
    for method, there, not_there in cases:
        with pytest.raises(SystemExit):
            parsed("--method", method, "--help")
        out = capsys.readouterr().out
        assert there in out and not_there not in out and f"--method {method}, or " in out
    assert choices()["quant.act"] == ["pact", "lsq", "lsq-plus", "dorefa", "minmax"]
    assert "lsq-plus" not in choices()["quant.weight"] and parts_of(RECIPE)["quant.weight"] == "sawb"
