"""One recipe made of another: the same without a teacher, with another one, or by the search's winner."""

from dataclasses import replace

from spequant.app.recipes import RECIPES
from spequant.app.recipes.schema import MethodChoice, differences
from spequant.app.recipes.variants import RETRAIN, beyond, retrain, taught

SPEQ = RECIPES["digits-w2a2-speq"]()


def names(recipe) -> set[str]:
    return {text.split(" is ")[0] for text in differences(recipe, SPEQ)}


def test_the_same_without_a_teacher_or_with_another_one():
    plain = retrain(SPEQ)
    assert (plain.name, plain.method) == ("digits-w2a2-retrain", RETRAIN) and names(plain) == {"name", "method.name"}
    own = replace(SPEQ, method=MethodChoice("speq", temperature=3.0))
    both = taught(own, "speq-distill")
    assert both.name == "digits-w2a2-speq-distill" and both.method == replace(own.method, name="speq-distill")


def test_beyond_changes_what_the_search_found():
    found = beyond(SPEQ)
    assert found.name == "digits-w2a2-beyond" and found.method == MethodChoice(
        "speq-distill", temperature=4.0, passes=2
    )
    assert (found.quant.weight, found.quant.act) == ("lsq", "lsq")
    assert (found.train.lr, found.train.weight_decay) == (0.0372, SPEQ.train.weight_decay / 2)
    assert names(found) == {
        *("name", "quant.weight", "quant.act", "method.name", "method.temperature", "method.passes"),
        *("train.lr", "train.weight_decay"),
    }
