"""Where a study works: the float networks that its arms start from, and what a page says of its length."""

import math
from dataclasses import replace

import pytest

from spequant.app.recipes import RECIPES
from spequant.app.recipes.serial import to_json
from spequant.app.studies.arms import arm_folder, folders_of
from spequant.app.studies.tables import method
from spequant.app.studies.workshop import Study, Workshop, about, about_one, low_bits
from spequant.methods import Retrain
from support.made_up_runs import Run


def test_the_float_run_that_a_recipe_names_is_trained_first(tmp_path, monkeypatch):
    trained = []
    monkeypatch.setattr(
        "spequant.app.studies.workshop.carry_out",
        lambda recipe, runs: (trained.append(recipe), ({}, runs / recipe.name))[1],
    )
    shop = Workshop("x", Study(out=tmp_path / "study", root=tmp_path, epochs=3, threads=1))
    recipe = shop.shared()(RECIPES["cifar10-5k-resnet20-w2a2-speq"]())
    assert recipe.network.weights == tmp_path / "study" / "runs" / "cifar10-5k-resnet20-float"
    assert [r.name for r in trained] == ["cifar10-5k-resnet20-float"] and trained[0].train.epochs == 40
    assert (recipe.train.epochs, recipe.data.root, trained[0].data.root) == (3, tmp_path, tmp_path)
    assert recipe.train.measure_every == 3  # what is held out is read at the end alone
    shop.shared()(RECIPES["cifar10-resnet20-w2a2-speq-200"]())  # names none: its network's float recipe
    assert [r.name for r in trained[1:]] == ["cifar10-resnet20-float"]
    given = Workshop("x", Study(out=tmp_path / "other", weights=tmp_path)).shared()
    transfer = RECIPES["transfer-resnet20-w2a2-speq"]()  # which has a new head, and names no weights
    assert given(transfer).network.weights == tmp_path
    assert given(RECIPES["cifar10-resnet20-w2a2-speq"]()).network.weights == tmp_path and len(trained) == 2
    apart = Workshop("x", Study(out=tmp_path / "study", held_out=5000)).shared()  # held out from the float network, too
    for name in ("cifar10-resnet20-w2a2-speq-200", "cifar10-5k-resnet20-w2a2-speq"):
        apart(RECIPES[name]())
    assert [(r.data.images, r.data.held_out) for r in trained[2:]] == [(None, 5000), (5120, 0)]
    with pytest.raises(ValueError, match=r"weights is not set.* mine .*--weights"):
        shop.shared()(replace(RECIPES["cifar10-resnet20-w2a2-speq"](), name="mine"))


def test_given_weights_may_have_seen_what_is_held_out(tmp_path):
    def told(data, **settings):
        (tmp_path / "float").mkdir(exist_ok=True)
        floating = RECIPES["cifar10-5k-resnet20-float"]()
        (tmp_path / "float" / "recipe.json").write_text(to_json(replace(floating, data=replace(floating.data, **data))))
        shop = Workshop("x", Study(out=tmp_path / "study", weights=tmp_path / "float", **settings))
        shop.shared()(RECIPES["cifar10-resnet20-w2a2-speq"]())
        return "may have seen the held-out images" in about(shop)

    everything = {"images": None}
    assert told(everything, held_out=5000) and not told(everything) and not told(everything | {"held_out": 5000})
    assert not told(everything | {"held_out": 5000}, held_out=4000) and told({"images": 5120}, held_out=5000)
    assert not told({"images": 5120}, held_out=5000, train_images=5120) and told({}, held_out=5000, train_images=5119)
    shop = Workshop("x", Study(out=tmp_path / "study", weights=tmp_path / "file.pt", held_out=1))
    shop.shared()(RECIPES["cifar10-resnet20-w2a2-speq"]())
    assert shop.seen


def test_networks_to_measure_are_those_that_did_not_diverge(tmp_path, monkeypatch):
    """Of two labels on one start, which is trained once."""

    def accuracy(recipe):
        diverges = recipe.quantized and isinstance(recipe.method, Retrain.Settings) and recipe.train.seed == 0
        return math.nan if diverges else 70.0

    run = Run(accuracy)
    monkeypatch.setattr("spequant.app.studies.arms.run", run)
    shop = Workshop("x", Study(out=tmp_path, seeds=(0, 3), smoke=True, recipe="digits-w2a2-speq"))
    labels = {"Retrain": method("retrain"), "SPEQ": method("speq")}
    found = low_bits(shop, labels)
    assert {label: list(network.folders) for label, network in found.items()} == {"Retrain": [3], "SPEQ": [0, 3]}
    ours = found["SPEQ"]
    assert ours.folders[0] == arm_folder(ours.arm.recipe, shop.runs) and ours.results[3]["test_accuracy"] == 70.0
    assert ours.command.endswith(f"--out {ours.folders[0]}") and len(folders_of(found.values())) == 3
    assert len(run.trained) == len(set(run.trained)) == 5  # the float network once
    with pytest.raises(FloatingPointError, match=r"Retrain diverged.*not finite"):
        low_bits(shop, {"Retrain": method("retrain")}, seeds=[0])


def test_studies_of_one_network_say_whose_seed_it_is(tmp_path):
    shop = Workshop("fig2", Study(out=tmp_path / "a", seeds=(7, 8), epochs=3))
    assert "seed 7" in about_one(shop) and "3 of 200 epochs" in about_one(shop)
    smoke = Workshop("fig2", Study(out=tmp_path / "a", smoke=True))
    assert about_one(smoke) == about(smoke) and about(smoke).startswith("SMOKE")
