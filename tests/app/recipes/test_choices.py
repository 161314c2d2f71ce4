"""Objects of a user's own in a recipe: methods, quantizers, data, optimizers, networks, tasks, losses, schedules."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from spequant.app.recipes import RECIPES
from spequant.app.recipes.choices import DATA, METHOD, OPTIMIZER, QUANTIZER
from spequant.app.recipes.command_line import recipe_named
from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.serial import from_json, to_json
from spequant.app.runs import run
from spequant.data import Torchvision

ROOT = Path(__file__).resolve().parents[3]

OWN = '''
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import nn

from spequant.data import ImageSet, ImagesInMemory, load_digits
from spequant.methods import Losses, MethodSettings, Retrain
from spequant.methods.tasks import Classification
from spequant.quantizers import LSQ
from spequant.app.recipes import RECIPES


class Net(nn.Module):
    def __init__(self, num_classes, in_channels):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(in_channels, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8 * 2 * 2, num_classes)

    def forward(self, x):
        return self.head(torch.flatten(self.second(self.first(x)), 1))


class Plain(Retrain):
    """Another name of Retrain."""


class Halved:
    """A method with settings."""

    @dataclass(frozen=True, kw_only=True)
    class Settings(MethodSettings):
        """Half of the loss."""

        share: float = 0.5
        """of the loss"""

        def __post_init__(self):
            if not 0 < self.share <= 1:
                raise ValueError(f"share is {self.share}; expected above 0 and at most 1")

        def build(self, start):
            return Halved(self.share, start.task)

    def __init__(self, share, task):
        self.share, self.retrain = share, Retrain(task=task)

    def __call__(self, model, batch):
        losses = self.retrain(model, batch)
        return replace(losses, total=self.share * losses.total)


def method(model, batch):
    return Retrain()(model, batch)


class Step(LSQ):
    """LSQ by another name."""


def squared(student, teacher, temperature):
    return F.mse_loss(student, teacher)


class Task(Classification):
    pass


def data():
    train, test = load_digits()
    return train.part(slice(0, 128)), test.part(slice(0, 64))


def not_data():
    return load_digits()[0]


@dataclass(frozen=True, kw_only=True)
class Some(ImagesInMemory):
    """The first digits."""

    count: int = 64

    def load(self, network):
        train, test = load_digits()
        return train.part(slice(0, self.count)), test.part(slice(0, 64))


@dataclass(frozen=True, kw_only=True)
class Unfinished(MethodSettings):
    """Settings that make nothing."""


def constant(optimizer, steps):
    return torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)


def fast():
    return replace(RECIPES["digits-float"](), name="fast")


ready = fast()
number = 3
'''


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The working folder, with own.py in it."""
    (tmp_path / "own.py").write_text(OWN)
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("reference", ["own:{}", "own.py:{}"])
def test_a_run_of_nothing_but_a_users_own_objects(reference, own, tmp_path):
    def name(thing):
        return reference.format(thing)

    base = RECIPES["digits-float"]()
    quant = replace(base.quant, weight=QUANTIZER.named(name("Step"))(), weight_bits=3, act_bits=4, percentile=99.0)
    recipe = Recipe(
        name="own",
        data=DATA.named(name("Some"))(count=128, held_out=0),
        network=replace(base.network, name=name("Net")),
        task=name("Task"),
        quant=quant,
        method=METHOD.named(name("Halved"))(share=0.25),
        train=replace(
            base.train,
            epochs=1,
            batch_size=32,
            optimizer=OPTIMIZER.named("torch.optim:NAdam")(),
            schedule=name("constant"),
            lr=1e-3,
        ),
    )
    again = from_json(to_json(recipe))
    assert again == recipe and again.method.share == 0.25
    result = run(recipe, tmp_path / "run")
    assert result["test_accuracy"] >= 0
    assert run(again, tmp_path / "run", resume=True) == result


@pytest.mark.parametrize("thing", ["Plain", "method"])
def test_methods_without_settings(thing, own):
    kind = METHOD.named(f"own:{thing}")
    assert METHOD.named(f"own:{thing}") is kind and METHOD.name_of(kind()) == f"own:{thing}"
    recipe = replace(RECIPES["digits-w2a2-retrain"](), method=kind())
    assert from_json(to_json(recipe)) == recipe


def test_data_from_a_function(own):
    train, held, test = DATA.named("own:data")(held_out=28).parts("", torch.device("cpu"))
    assert (len(train), len(held), len(test)) == (100, 28, 64)
    with pytest.raises(ValueError, match="data own:not_data gave ImageSet; expected"):
        DATA.named("own:not_data")().load("")


def test_a_loss_of_ones_own(own):
    content = to_json(RECIPES["digits-w2a2-speq"]()).replace('"cosine"', '"own:squared"')
    recipe = from_json(content)
    assert recipe.method.loss == "own:squared" and recipe.method.make().loss.__name__ == "squared"


def test_recipes_of_ones_own(own, tmp_path):
    assert recipe_named("own.py:fast") == recipe_named("own:ready") == replace(RECIPES["digits-float"](), name="fast")
    (tmp_path / "my.json").write_text(to_json(recipe_named("own:ready")))
    assert recipe_named("my.json") == recipe_named("own:ready")
    for name, named in (
        ("own:number", "own:number is int; expected a Recipe"),
        ("own:nothing", "has no 'nothing'"),
        ("digits-flaot", "recipe is 'digits-flaot'; did you mean digits-float"),
    ):
        with pytest.raises(ValueError, match=named):
            recipe_named(name)
    with pytest.raises(FileNotFoundError, match=r"other\.json does not exist"):
        recipe_named("other.json")


@pytest.mark.parametrize(
    ("choice", "name", "named"),
    [
        (METHOD, "own:number", "method is 'own:number', a int; expected a class"),
        (METHOD, "own:Halve", "has no 'Halve'; did you mean Halved"),
        (METHOD, "own:Unfinished", "method is 'own:Unfinished'; Unfinished has no build"),
        (QUANTIZER, "own:Net", "'own:Net' is no quantizer"),
        (DATA, "own:number", "data is 'own:number', a int"),
        (OPTIMIZER, "own:number", "train.optimizer is 'own:number', a int"),
        (DATA, "cifar", "data is 'cifar'; did you mean cifar10"),
    ],
)
def test_what_is_no_such_thing_is_refused(choice, name, named, own):
    with pytest.raises(ValueError, match=named):
        choice.named(name)


def test_a_setting_of_ones_own_is_checked(own):
    content = to_json(replace(RECIPES["digits-w2a2-retrain"](), method=METHOD.named("own:Halved")()))
    with pytest.raises(ValueError, match=r"recipe\.method: share is 3"):
        from_json(content.replace('"share": 0.5', '"share": 3.0'))


def test_torchvisions_sets_have_names():
    flowers = DATA.named("torchvision/Flowers102")
    assert flowers is Torchvision.named("Flowers102") and DATA.name_of(flowers()) == "torchvision/Flowers102"
