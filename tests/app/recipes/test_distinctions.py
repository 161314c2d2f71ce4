"""What tells recipes apart: fields that differ, and none that follow from another choice."""

from dataclasses import replace
from pathlib import Path

from spequant.app.recipes import RECIPES
from spequant.app.recipes.distinctions import changes_in_words, distinctions
from spequant.methods import Retrain
from spequant.quantizers import LSQ

BASE = RECIPES["digits-w2a2-speq"]()
LONGER = replace(BASE, name="other", train=replace(BASE.train, epochs=99, threads=7, seed=5))


def test_names_seeds_and_places_are_left_out_where_asked():
    assert distinctions([BASE, BASE]) == [{}, {}]
    assert distinctions([BASE, LONGER], ["train.seed"]) == [{"train.epochs": 12}, {"train.epochs": 99}]
    assert changes_in_words(distinctions([BASE, LONGER])[1]) == "train.epochs=99 train.seed=5"
    here = replace(BASE, network=replace(BASE.network, weights=Path("runs/x")))
    there = replace(BASE, network=replace(BASE.network, weights=Path("runs/../runs/x")))
    assert distinctions([here, there]) == [{}, {}]


def test_options_of_a_choice_are_compared_within_it():
    other = replace(BASE, method=Retrain.Settings())
    warm = replace(BASE, method=replace(BASE.method, temperature=4.0))
    assert distinctions([BASE, other]) == [{"method": "speq"}, {"method": "retrain"}]
    assert distinctions([BASE, other, warm])[::2] == [
        {"method": "speq", "method.temperature": 1.0},
        {"method": "speq", "method.temperature": 4.0},
    ]
    learned = replace(BASE, quant=replace(BASE.quant, weight=LSQ.Settings()))
    assert distinctions([BASE, learned])[1] == {"quant.weight": "lsq"}
    bigger = replace(BASE, network=replace(BASE.network, name="resnet20"))
    assert distinctions([BASE, bigger])[1] == {"network.name": "resnet20"}
