"""The paper's tables: their arms are on equal terms, say what they are, and have the published figures."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from spequant.app.recipes import RECIPES
from spequant.app.studies.arms import Arm, command_of, equal_terms, recipe_digest
from spequant.app.studies.tables import CIFAR, IMAGENET, Family, longer, table2, table3, table4, table5
from spequant.app.studies.workshop import Study, Workshop
from spequant.app.train import parsed_train

TABLES = [(family, table) for family in CIFAR for table in (table2, table3, table4)]
TABLES += [(family, table5) for family in IMAGENET]
RUNS = Path("runs")


def every_arm(*families: Family) -> list[Arm]:
    return [a for family, table in TABLES if not families or family in families for a in table(family, lambda r: r)]


def test_all_arms_are_on_equal_terms():
    arms = every_arm()
    equal_terms(arms)
    assert len({(a.group, a.label, recipe_digest(a.recipe, RUNS)) for a in arms}) > 100
    firsts = {a.group: a for a in reversed(arms)}
    for arm in (a for a in arms if a.label != "Retrain" and "train.lr" not in a.changes):  # whatever its note says
        other = replace(arm, recipe=replace(arm.recipe, train=replace(arm.recipe.train, lr=1.0)))
        with pytest.raises(ValueError, match=r"equal terms with Retrain: .*train\.lr is 1\.0"):
            equal_terms([firsts[arm.group], other])
    assert len({a.changes for a in arms}) == 6


def their_commands_say_what_they_are(arms: list[Arm]) -> None:
    """Equal commands are parsed once."""
    for command, wanted in {command_of(a.base, a.recipe): recipe_digest(a.recipe, RUNS) for a in arms}.items():
        words = shlex.split(command)
        assert recipe_digest(parsed_train(words[2], words[3:]).recipe, RUNS) == wanted, command


def test_the_commands_of_arms_say_what_they_are():
    """Of ResNet-20's, which have all changes, and of a network whose weights are published."""
    their_commands_say_what_they_are(every_arm(CIFAR[1], IMAGENET[-1]))


@pytest.mark.slow
def test_the_commands_of_all_arms_say_what_they_are():
    their_commands_say_what_they_are(every_arm())


def test_two_arms_whose_start_or_backward_is_another():
    arms = {a.label: a for a in every_arm(CIFAR[1])}
    for label in ("SQAKD", "SQuaT"):
        assert "--quant.ewgs 0.001" in command_of(arms[label].base, arms[label].recipe)
    assert "--quant.weight statsq" in command_of(arms["StatsQ"].base, arms["StatsQ"].recipe)
    weights = Path("float")

    def started(recipe):
        return replace(recipe, network=replace(recipe.network, weights=weights))

    student = next(a for a in table4(CIFAR[1], started) if a.label == "Apprentice B").recipe
    words = shlex.split(command_of(CIFAR[1].speq, student))
    again = parsed_train(words[2], words[3:]).recipe
    assert again == student and (again.network.weights, again.method.teacher) == (None, weights)


def test_a_study_on_one_network_keeps_its_recipes_settings_and_the_papers_figures(tmp_path):
    def arms(recipe, table):
        shop = Workshop("x", Study(recipe=recipe, out=tmp_path))
        return {a.label: a for a in reversed(table(shop.family(), lambda r: r))}  # the paper's Retrain, not the other

    own = arms("cifar10-5k-resnet20-w2a2-speq", table4)
    assert own["SPEQ"].recipe.method == RECIPES["cifar10-5k-resnet20-w2a2-speq"]().method
    assert own["SPEQ"].recipe.method.temperature == 2.0 and own["SPEQ and KD"].recipe.method.distill.temperature == 2.0
    assert arms("cifar10-5k-resnet20-w2a2-speq", table2)["KL, Mix"].recipe.method.temperature == 2.0
    around = {label for label in arms("cifar10-5k-resnet20-w2a2-speq", table3) if " T = " in label}
    assert around == {"SPEQ, T = 1", "SPEQ, T = 4"}
    assert {label for label in arms(None, table3) if " T = " in label} == {"SPEQ, T = 2", "SPEQ, T = 4"}
    for recipe in (None, "cifar10-resnet20-w2a2-speq-200"):
        papers = {label: a.paper for label, a in arms(recipe, table4).items() if a.paper}
        assert papers == {"Retrain": 90.7, "SPEQ": 91.44, "QKD": 91.24}
        assert sum(a.paper is not None for a in arms(recipe, table2).values()) == 3
    assert {RECIPES[family.speq]().train.epochs for family in CIFAR} == {200}  # table4's rows are of one length
    assert "Apprentice B" not in arms("imagenet-resnet18-w2a2-speq", table4)  # whose teacher would be at random
    papers = {a.group: a.paper for a in every_arm(*IMAGENET) if a.label == "SPEQ"}
    assert list(papers.values()) == [59.3, 67.4, 71.5, 69.5]


def test_equal_time_counts_the_passes_of_every_teacher():
    base = RECIPES["cifar10-5k-resnet20-w2a2-beyond"]()
    assert [longer(base, passes).train.epochs for passes in (1, 3)] == [53, 80]  # of 40
