"""The search beyond the paper's settings: its trials, its winner, and the arms that it is compared with."""

import math
import re
from dataclasses import replace

import pytest

from spequant.app.recipes import RECIPES
from spequant.app.recipes.serial import differences
from spequant.app.studies.beyond import PAPER, SEARCHES, Tried, passes_of, search, startup, winner, without_each
from spequant.app.studies.workshop import Study, Workshop
from spequant.methods import SPEQDistill
from spequant.quantizers import LSQ
from support.made_up_runs import Run, in_this_process
from support.study_files import SMALL, rows_of, smoke


def test_beyond(tmp_path, monkeypatch):
    """Whole, but that its runs are made up."""
    run = Run()
    monkeypatch.setattr("spequant.app.studies.arms.run", run)
    rows = smoke("beyond", tmp_path / "study", "--seeds", "0", *SMALL)
    assert [row["arm"] for row in rows[:4]] == ["Retrain", "SPEQ", "Retrain, best", "SPEQ, best"]
    trials = rows_of(tmp_path / "study", "beyond-trials")
    assert [(t["search"], t["trial"]) for t in trials] == [(s, t) for s in ("Retrain", "SPEQ") for t in "01"]
    for i, name in ((2, "Retrain"), (3, "SPEQ")):
        first, other = (t for t in trials if t["search"] == name)
        assert first["what"] == "the paper's settings" != other["what"]
        assert float(first["held out"]) == float(rows[i - 2]["held out"])
        best = max((t for t in trials if t["search"] == name), key=lambda t: float(t["held out"]))
        assert float(best["held out"]) == float(rows[i]["held out"]) and rows[i]["note"] == best["what"]
    changed = [] if rows[3]["note"] == "the paper's settings" else rows[3]["note"].split(", ")
    assert [row["arm"] for row in rows[4:]] == ["Retrain, best, equal time", *(f"best without {p}" for p in changed)]
    assert rows[2]["note"] in rows[4]["note"] and "the wall time of SPEQ's best" in rows[4]["note"]
    runs = {f.parent.name for f in (tmp_path / "study" / "runs").glob("*/metrics.jsonl")}
    page = (tmp_path / "study" / "beyond.md").read_text()
    assert runs == set(re.findall("sha256 of (.*)/metrics.jsonl", page))  # the trials' and the float network's too
    best = float(rows[2]["test accuracy"])
    for i, row in enumerate(rows):
        gap = row["minus Retrain, best"]
        assert gap == "" if i == 2 else float(gap) == pytest.approx(float(row["test accuracy"]) - best)
    count = len(run.trained)
    again = smoke("beyond", tmp_path / "study", "--seeds", "0", "--resume", *SMALL)
    assert again == rows and len(run.trained) == count  # the same trials, none of them trained again


@pytest.fixture
def shop(tmp_path) -> Workshop:
    return Workshop("beyond", Study(out=tmp_path / "study", trials=12, seeds=(0, 1), recipe="digits-w2a2-speq"))


BASE = RECIPES["digits-w2a2-speq"]()
BASE = replace(BASE, data=replace(BASE.data, held_out=200))


def test_a_trial_that_diverges_is_none_that_wins(shop, monkeypatch):
    """LSQ diverges; of the others, the more that is changed, the better."""
    run = Run(lambda r: math.nan if r.quant.weight == LSQ.Settings() else float(len(differences(r, BASE))))
    monkeypatch.setattr("spequant.app.studies.arms.run", run)
    found = search("Retrain", BASE, shop)
    assert len(found) == 12 and {t.method for t in found} == {"retrain"} and found[0].parts == {}
    lost = [t for t in found if t.accuracy == -math.inf]  # each counts as a trial
    assert 0 < len(lost) < 12 and all("LSQ" in t.parts for t in lost)
    won = winner(found, BASE, shop)
    assert won.accuracy == max(t.accuracy for t in found) > 0 and "LSQ" not in won.parts
    monkeypatch.setattr("spequant.app.studies.arms.run", Run(lambda recipe: math.nan))
    with pytest.raises(FloatingPointError, match=r"all of 12 trials diverged.*digits-w2a2-speq"):
        winner(search("SPEQ", BASE, shop), BASE, shop)


def test_the_best_on_all_seeds_wins(shop, monkeypatch):
    """The first seed chooses three; the one that it finds best falls behind on the second."""
    rates = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
    worth = {1.0: (80.0, 60.0), 2.0: (79.0, 79.0), 3.0: (78.0, 70.0), 4.0: (50.0, 99.0)}
    monkeypatch.setattr("spequant.app.studies.arms.run", Run(lambda r: worth[r.train.lr][r.train.seed]))

    def at(rate):
        return lambda recipe: replace(recipe, train=replace(recipe.train, lr=rate))

    found = [Tried("speq", {name: at(rate)}, worth[rate][0]) for name, rate in rates.items()]
    assert winner(found, BASE, shop).label == "b"


def test_trials_at_once_are_as_many(shop, monkeypatch):
    """And each trained once, by the commands that processes of their own would be given."""
    run = Run()
    monkeypatch.setattr("spequant.app.studies.arms.run", run)
    monkeypatch.setattr("spequant.app.train.run", run)
    monkeypatch.setattr("spequant.app.studies.arms.side_by_side", in_this_process)
    shop.settings = replace(shop.settings, trials=4, at_once=2)
    assert len(search("SPEQ", BASE, shop)) == 4 and len(run.trained) == len(set(run.trained))


@pytest.mark.parametrize("name", SEARCHES)
def test_the_papers_settings_change_nothing(name, shop):
    import optuna

    _, parts = SEARCHES[name]
    assert parts(optuna.trial.FixedTrial(PAPER), shop, 10) == {}
    assert [startup(trials) for trials in (1, 6, 30)] == [2, 2, 10]


def test_more_bits_come_first_for_their_share_of_the_epochs(shop, monkeypatch):
    import optuna

    run = Run()
    monkeypatch.setattr("spequant.app.studies.arms.run", run)
    _, parts = SEARCHES["SPEQ"]
    trial = optuna.trial.FixedTrial({**PAPER, "progressive": "4 -> 3", "a separate teacher": True})
    changes = list(parts(trial, shop, 10).values())
    recipe = BASE
    for change in changes:
        recipe = change(recipe)
    four, three = run.trained
    assert recipe.network.weights == three and recipe.train.epochs == 4  # of 12
    assert (recipe.quant.weight_bits, recipe.quant.act_bits) == (2, 2)
    assert isinstance(recipe.method, SPEQDistill.Settings) and recipe.method.distill.teacher == BASE.network.weights
    told = three.joinpath("recipe.json").read_text()
    assert str(four) in told and '"weight_bits": 3' in told and '"epochs": 4' in told


def test_equal_time_counts_the_passes_of_every_teacher():
    base = RECIPES["cifar10-5k-resnet20-w2a2-beyond"]()
    assert base.method.speq.passes == 2 and passes_of(base) == 3  # and the float network's
    assert passes_of(BASE) == 1


def test_an_ablation_leaves_out_one_part_at_a_time():
    won = Tried("speq", {name: lambda recipe, name=name: recipe + name for name in "abc"}, 1.0)
    rest = {part: "".join(change("") for change in one.parts.values()) for part, one in without_each(won).items()}
    assert rest == {"a": "bc", "b": "ac", "c": "ab"}
    assert without_each(won)["b"].label == "a, c" and without_each(Tried("speq", {}, 1.0)) == {}
