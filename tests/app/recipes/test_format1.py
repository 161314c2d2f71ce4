"""Recipes of format 1, as runs and packed files of the versions before hold them, mean what they meant."""

import json

import pytest

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.serial import from_json
from spequant.data import CIFAR10, Digits, Folder, Squad, Torchvision
from spequant.methods import GSLR, QFD, SPEQ, Distill, ExtendedSPEQ, JointBits, SPEQDistill, by_name
from spequant.quantizers import LSQ, PACT, SAWB, LSQPlus
from spequant.train import SGD, AdamW

METHOD = {
    "name": "speq",
    "high_bits": 8,
    "probability": 0.5,
    "mix": False,
    "loss": None,
    "temperature": None,
    "weight": None,
    "batch_norm": "leave",
    "passes": 1,
    "teacher": None,
    "probability_end": None,
    "temperature_end": None,
    "average": None,
    "feature_weight": 0.0,
    "joint": False,
    "feature_bits": 4,
    "widths": [4, 8],
}
DATA = {
    "name": "cifar10",
    "root": None,
    "download": False,
    "images": None,
    "held_out": 5000,
    "measure_every": 1,
    "augment": True,
    "crop_scale": 0.08,
    "color_jitter": None,
    "auto_augment": None,
    "mixup": 0.0,
    "cutmix": 0.0,
    "size": None,
    "crop_pct": None,
    "interpolation": None,
    "check_images": False,
    "workers": None,
    "max_length": 384,
    "stride": 128,
}
QUANT = {"weight": "sawb", "act": "pact", "act_decay": 2e-4}
TRAIN = {"optimizer": "sgd", "momentum": 0.9}


def read(method=(), data=(), quant=(), train=(), network=()):
    parts = {"method": METHOD | dict(method), "data": DATA | dict(data), "quant": QUANT | dict(quant)}
    parts |= {"train": TRAIN | dict(train), "network": {"name": "resnet20"} | dict(network), "name": "old"}
    return from_json(json.dumps(parts))


def test_the_defaults_are_the_defaults():
    assert read() == Recipe(name="old")
    assert from_json("{}") == Recipe()


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        ({"temperature": 2.0, "loss": "kl", "passes": 3}, SPEQ.Settings(temperature=2.0, loss="kl", passes=3)),
        (
            {"temperature": 2.0, "average": 0.9},
            ExtendedSPEQ.Settings(speq=SPEQ.Settings(temperature=2.0), average=0.9),
        ),
        ({"probability_end": 0.0}, ExtendedSPEQ.Settings(probability_end=0.0)),
        ({"name": "retrain"}, by_name["retrain"]()),
        ({"name": "distill", "temperature": 4.0}, Distill.Settings(temperature=4.0)),
        (
            {"name": "speq-distill", "temperature": 4.0, "passes": 2},
            SPEQDistill.Settings(
                speq=SPEQ.Settings(temperature=4.0, passes=2), distill=Distill.Settings(temperature=4.0)
            ),
        ),
        ({"name": "qfd", "feature_bits": 3}, QFD.Settings(bits=3)),
        ({"name": "gslr", "weight": 0.5}, GSLR.Settings(weight=0.5)),
        ({"name": "joint-bits", "widths": [3, 5]}, JointBits.Settings(widths=(3, 5))),
    ],
)
def test_methods(method, expected):
    assert read(method=method).method == expected


def test_data():
    assert read(data={"name": "digits", "held_out": 0, "augment": False}).data == Digits(held_out=0, augment=False)
    assert read(data={"name": "folder", "size": 64, "workers": 2}).data == Folder(size=64, workers=2)
    assert read(data={"images": 5120, "mixup": 0.2}).data == CIFAR10(images=5120, mixup=0.2)
    flowers = Torchvision.named("Flowers102")
    assert read(data={"name": "torchvision/Flowers102", "crop_scale": 0.25}).data == flowers(crop_scale=0.25)
    asked = read(data={"name": "squad", "stride": 64}, network={"name": "transformers/bert-base-uncased"})
    assert asked.data == Squad(stride=64)
    assert read(data={"measure_every": 3}).train.measure_every == 3


def test_quantizers_and_optimizers():
    quant = read(quant={"act_decay": 2e-3}).quant
    assert (quant.weight, quant.act) == (SAWB.Settings(), PACT.Settings(decay=2e-3))
    quant = read(quant={"weight": "lsq", "act": "lsq-plus"}).quant
    assert (quant.weight, quant.act) == (LSQ.Settings(), LSQPlus.Settings())
    assert read(train={"momentum": 0.5}).train.optimizer == SGD(momentum=0.5)
    assert read(train={"optimizer": "adamw"}).train.optimizer == AdamW()


def test_a_field_that_no_version_had_is_named():
    for part, field in (("data", "sizes"), ("train", "epoch"), ("quant", "bits")):
        with pytest.raises(ValueError, match=rf"recipe\.{part} .*\['{field}'\]"):
            read(**{part: {field: 3}})


def test_a_recipe_of_the_catalogue_is_what_it_was():
    beyond = read(
        method={"name": "speq-distill", "temperature": 4.0, "passes": 2},
        quant={"weight": "lsq", "act": "lsq"},
        data={"images": 5120, "held_out": 0},
        train={"epochs": 40, "lr": 0.0372, "weight_decay": 5e-5},
        network={"weights": "runs/cifar10-5k-resnet20-float"},
    )
    expected = RECIPES["cifar10-5k-resnet20-w2a2-beyond"]()
    assert (beyond.data, beyond.quant, beyond.method) == (expected.data, expected.quant, expected.method)
    assert (beyond.train, beyond.network) == (expected.train, expected.network)
