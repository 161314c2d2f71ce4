"""One recipe made of another: the same without a teacher, with another one, or by the search's winner."""

from dataclasses import replace

import pytest

from spequant.app.recipes import RECIPES
from spequant.app.recipes.serial import differences
from spequant.app.recipes.variants import RETRAIN, beyond, distill, retrain, speq_distill
from spequant.methods import SPEQ, Distill, SPEQDistill
from spequant.quantizers import LSQ

RECIPE = RECIPES["digits-w2a2-speq"]()


def names(recipe) -> set[str]:
    return {text.split(" is ")[0] for text in differences(recipe, RECIPE)}


def test_the_same_without_a_teacher_or_with_another_one():
    plain = retrain(RECIPE)
    assert (plain.name, plain.method) == ("digits-w2a2-retrain", RETRAIN)
    assert {name for name in names(plain) if not name.startswith("method.")} == {"name"}
    settings = SPEQ.Settings(temperature=3.0, passes=2)
    own = replace(RECIPE, method=settings)
    taught = Distill.Settings(temperature=3.0)
    assert (distill(own).name, distill(own).method) == ("digits-w2a2-distill", taught)
    both = speq_distill(own)
    assert (both.name, both.method) == (
        "digits-w2a2-speq-distill",
        SPEQDistill.Settings(speq=settings, distill=taught),
    )
    with pytest.raises(ValueError, match=r"digits-w2a2-retrain has Retrain\.Settings; expected SPEQ"):
        distill(plain)


def test_beyond_changes_what_the_search_found():
    found = beyond(RECIPE)
    speq, taught = SPEQ.Settings(temperature=4.0, passes=2), Distill.Settings(temperature=4.0)
    assert (found.name, found.method) == ("digits-w2a2-beyond", SPEQDistill.Settings(speq=speq, distill=taught))
    assert (found.quant.weight, found.quant.act) == (LSQ.Settings(), LSQ.Settings())
    assert (found.train.lr, found.train.weight_decay) == (0.0372, RECIPE.train.weight_decay / 2)
    assert {n for n in names(found) if not n.startswith(("method.", "quant.weight.", "quant.act."))} == {
        *("name", "train.lr", "train.weight_decay")
    }
