"""What a run needs of its recipe."""

from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.recipes import RECIPES
from spequant.app.recipes.readiness import check_ready
from spequant.app.recipes.recipe import Network
from spequant.methods import QKD, Apprentice, SPEQDistill, by_name

SPEQ_ON_DIGITS = RECIPES["digits-w2a2-speq"]()
TAUGHT = [
    *("distill", "speq-distill", "apprentice", "sqakd", "qfd", "gslr", "block-replacement", "squat"),
    *("gor", "gplq"),
]


def taught_by(name, teacher):
    settings = by_name[name]()
    if isinstance(settings, SPEQDistill.Settings):
        return replace(settings, distill=replace(settings.distill, teacher=teacher))
    return replace(settings, teacher=teacher)


@pytest.mark.parametrize("name", TAUGHT)
def test_a_teacher_that_has_learned_nothing_is_refused_by_a_run(name):
    recipe = replace(SPEQ_ON_DIGITS, method=by_name[name]())
    check_ready(recipe)
    random = replace(recipe, network=replace(recipe.network, weights=None))
    with pytest.raises(ValueError, match=r"method\.teacher is None .* random weights.* --network\.weights"):
        check_ready(random)
    with pytest.raises(ValueError, match=r"method\.teacher is None .* new head"):
        check_ready(replace(recipe, network=replace(recipe.network, new_head=True)))
    check_ready(replace(random, method=taught_by(name, Path("float"))))
    check_ready(replace(random, method=Apprentice.Settings(joint=True)))  # which learns
    check_ready(replace(random, method=QKD.Settings()))


def test_a_new_head_needs_weights_behind_it():
    recipe = replace(SPEQ_ON_DIGITS, method=by_name["retrain"](), network=Network(name="resnet8", new_head=True))
    with pytest.raises(ValueError, match=r"network\.new_head is True; expected False.*--network\.weights"):
        check_ready(recipe)


@pytest.mark.parametrize("setting", ["ema", "freeze_threshold"])
def test_averages_and_frozen_weights_do_not_go_with_ranges_that_come_later(setting):
    def recipe(name):
        return replace(SPEQ_ON_DIGITS, method=by_name[name](), train=replace(SPEQ_ON_DIGITS.train, **{setting: 0.5}))

    check_ready(recipe("distill"))
    with pytest.raises(ValueError, match=rf"train\.{setting} is 0\.5; expected None: GPLQ"):
        check_ready(recipe("gplq"))
