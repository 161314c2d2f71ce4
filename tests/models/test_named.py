"""Networks by name, of this project and of libraries; new heads; what a model may return."""

import re
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spequant
from spequant.data import data_configuration
from spequant.models import load_weights, make_network
from spequant.models.weights import head_of
from spequant.quantizers import PACT, SAWB
from spequant.recipes import RECIPES, evaluate_source, export_source, run
from spequant.recipes.check import check
from spequant.recipes.schema import Network, from_json, to_json
from spequant.tasks import Classification


@pytest.mark.parametrize("name", ["resnet20", "torchvision/squeezenet1_1", "timm/test_resnet", "timm/test_vit"])
def test_a_network_by_name_has_the_datas_classes(name):
    network = make_network(name, classes=7, size=64).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_a_transformer_is_made_for_the_size_of_the_images():
    assert make_network("timm/vit_tiny_patch16_224", classes=2, size=32).patch_embed.grid_size == (2, 2)
    assert make_network("torchvision/vit_b_32", classes=2, size=64).image_size == 64


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnet2", r"network.name is 'resnet2'; expected resnet8.*near to it: resnet32, resnet20"),
        ("torchvision/resnet1", r"'torchvision/resnet1', which torchvision does not have; near.*torchvision/resnet18"),
        ("timm/resnet_18", r"'timm/resnet_18', which timm does not have; near to it: timm/resnet18"),
    ],
)
def test_an_unknown_network_is_refused_with_near_names(name, said):
    with pytest.raises(ValueError, match=said):
        make_network(name, classes=2)


def test_what_a_library_cannot_give_is_refused():
    with pytest.raises(ValueError, match="for 3 channels; the data have 1"):
        make_network("torchvision/resnet18", classes=2, in_channels=1)
    with pytest.raises(ValueError, match="resnet20 has no published weights"):
        make_network("resnet20", classes=10, pretrained=True)
    with pytest.raises(ValueError, match=r"timm's resnet18 has 1000 classes, the data 7; give --network\.new-head"):
        make_network("timm/resnet18", classes=7, pretrained=True)
    for name in ("resnet18", "torchvision/resnet18"):
        with pytest.raises(ValueError, match=r"torchvision's.* has 1000 classes, the data 7; give --network\.new-head"):
            make_network(name, classes=7, pretrained=True)
    assert make_network("timm/test_resnet", classes=2, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 2)


def test_a_new_head_leaves_all_else_as_in_the_file(tmp_path):
    source, target = make_network("resnet8", classes=7), make_network("resnet8", classes=3)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="size mismatch for linear"):
        load_weights(target, tmp_path / "weights.safetensors")
    before = target.linear.weight.clone()
    load_weights(target, tmp_path / "weights.safetensors", new_head=True)
    assert torch.equal(target.linear.weight, before)
    assert torch.equal(target.conv1.weight, source.conv1.weight) and head_of(target) == "linear"
    with pytest.raises(ValueError, match="does not fit CifarResNet"):  # another network is no other head
        load_weights(make_network("resnet20", classes=7), tmp_path / "weights.safetensors", new_head=True)
    with pytest.raises(ValueError, match="has no linear layer"):
        head_of(nn.Sequential(nn.ReLU()))


def test_a_run_with_a_new_head_is_opened_without_what_it_started_from(tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(make_network("resnet8", classes=7, in_channels=1).state_dict(), weights)
    recipe = RECIPES["digits-w2a2-speq"]()
    recipe = replace(recipe, network=Network("resnet8", weights=weights), train=replace(recipe.train, epochs=1))
    with pytest.raises(ValueError, match=r"10 classes.*or --network\.new-head for a last layer"):
        run(recipe, tmp_path / "without")
    result = run(replace(recipe, network=replace(recipe.network, new_head=True)), tmp_path / "run")
    weights.unlink()
    (row,) = evaluate_source(tmp_path / "run")
    assert row["accuracy"] == pytest.approx(result["test_accuracy"])
    export_source(tmp_path / "run", "packed", images=32)
    (row,) = evaluate_source(tmp_path / "run/model.packed")
    assert row["accuracy"] == pytest.approx(result["test_accuracy"])


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith(("imagenet", "transfer", "flowers"))])
def test_a_recipe_for_larger_images_prepares_its_network(name):
    from spequant.recipes.build import build_quantized

    recipe = RECIPES[name]()
    if name.startswith("transfer"):
        with pytest.raises(ValueError, match=r"network\.new_head is True.*--network\.weights RUN"):
            check(recipe)  # which has to be told of its weights
        recipe = replace(recipe, network=replace(recipe.network, weights=Path("given")))
    check(recipe)
    assert from_json(to_json(recipe)) == recipe
    network = make_network(recipe.network.name, classes=4)
    model = build_quantized(network, recipe.quant)
    assert (model is network) == (not recipe.quantized)


Named = namedtuple("Named", ["logits", "aux"])


@pytest.mark.parametrize(
    ("returned", "output"),
    [
        (lambda x: {"logits": x, "aux": None}, None),
        (lambda x: Named(x, None), None),
        (lambda x: (x, None), 0),
        (lambda x: {"out": x}, "out"),
    ],
)
def test_logits_are_taken_from_what_a_model_returns(returned, output):
    class Model(nn.Module):
        def forward(self, x):
            return returned(x)

    batch = torch.randn(2, 3), torch.tensor([0, 1])
    assert torch.equal(Classification(output).logits(Model(), batch), batch[0])
    with pytest.raises(TypeError, match=r"expected a tensor of logits.*Classification\(output=0\)"):
        Classification("absent" if output != "absent" else 9).logits(Model(), batch)


def test_a_network_that_asks_for_its_version_is_read_from_files(tmp_path):
    """torchvision's MNASNet."""
    model = make_network("torchvision/mnasnet0_5", classes=10)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "net.safetensors")
    other = make_network("torchvision/mnasnet0_5", classes=10)
    load_weights(other, tmp_path / "net.safetensors")
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    quantized = spequant.prepare(model, weight=SAWB(4), act=PACT(4), residual=None)
    x = torch.randn(4, 3, 64, 64)
    spequant.calibrate(quantized, [x], samples=4)
    spequant.pack(quantized.eval(), tmp_path / "net.packed")
    loaded = spequant.load_packed(tmp_path / "net.packed", make_network("torchvision/mnasnet0_5", classes=10))
    assert torch.equal(loaded.eval()(x), quantized(x))


def test_published_names_of_densenet_are_its_modules(monkeypatch):
    import torchvision

    published = torchvision.models.get_model_weights("densenet121").DEFAULT
    own = torchvision.models.densenet121(weights=None)
    state = own.state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): x for name, x in state.items()}
    assert set(old) != set(state)
    monkeypatch.setattr(type(published), "get_state_dict", lambda self, **_: old)
    made = make_network("torchvision/densenet121", classes=1000, pretrained=True)
    assert all(map(torch.equal, made.state_dict().values(), state.values()))


def test_googlenets_images_are_from_minus_one_to_one():
    """What torchvision puts into the network with published weights, the data's mean and deviation do."""
    import torchvision

    x = torch.rand(2, 3, 8, 8)
    network = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False, transform_input=True)
    usual, own = data_configuration("torchvision/resnet18"), data_configuration("torchvision/googlenet")

    def normalised(about):
        return (x - torch.tensor(about.mean).view(-1, 1, 1)) / torch.tensor(about.std).view(-1, 1, 1)

    torch.testing.assert_close(network._transform_input(normalised(usual)), normalised(own))
