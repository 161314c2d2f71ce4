"""Networks by name, from this project and from libraries; published weights and new heads."""

import re
from urllib.error import URLError

import pytest
import torch

from spequant.models import make_network


@pytest.mark.parametrize("name", ["resnet20", "torchvision/squeezenet1_1", "timm/test_resnet", "timm/test_vit"])
def test_a_network_by_name_has_as_many_logits_as_classes(name):
    network = make_network(name, classes=7, size=64).eval()
    assert network(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_a_transformer_is_made_for_the_size_of_the_images():
    assert make_network("timm/vit_tiny_patch16_224", classes=2, size=32).patch_embed.grid_size == (2, 2)
    assert make_network("torchvision/vit_b_32", classes=2, size=64).image_size == 64


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet2", r"network\.name is 'resnet2'; .*resnet8.*: resnet32, resnet20"),
        ("torchvision/resnet1", r"'torchvision/resnet1', .*torchvision/resnet18"),
        ("timm/resnet_18", r"'timm/resnet_18', .*: timm/resnet18"),
    ],
)
def test_an_unknown_network_is_refused_with_near_names(name, message):
    with pytest.raises(ValueError, match=message):
        make_network(name, classes=2)


def test_channels_weights_and_classes_that_a_library_does_not_have_are_refused():
    with pytest.raises(ValueError, match=r"torchvision/resnet18', for 3 channels; .* 1$"):
        make_network("torchvision/resnet18", classes=2, in_channels=1)
    with pytest.raises(ValueError, match=r"resnet20 has no published .*--network\.no-pretrained"):
        make_network("resnet20", classes=10, pretrained=True)
    with pytest.raises(ValueError, match=r"timm's resnet18 has 1000 classes, .* 7; .*--network\.new-head"):
        make_network("timm/resnet18", classes=7, pretrained=True)
    for name in ("resnet18", "torchvision/resnet18"):
        with pytest.raises(ValueError, match=r"torchvision's.* 1000 classes, .* 7; .*--network\.new-head"):
            make_network(name, classes=7, pretrained=True)
    assert make_network("timm/test_resnet", classes=2, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 2)


def test_published_weights_that_cannot_be_fetched_are_named(monkeypatch):
    def refused(*_args, **_named):
        raise URLError("no network")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", refused)
    with pytest.raises(OSError, match=r"https://\S+resnet18\S+\.pth .*no network.*--network\.weights FILE"):
        make_network("resnet18", classes=1000, pretrained=True)


def test_published_names_of_densenet_are_mapped_to_its_modules(monkeypatch):
    import torchvision

    published = torchvision.models.get_model_weights("densenet121").DEFAULT
    state = torchvision.models.densenet121(weights=None).state_dict()
    old = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", name): x for name, x in state.items()}
    assert set(old) != set(state)
    monkeypatch.setattr(type(published), "get_state_dict", lambda self, **_: old)
    network = make_network("torchvision/densenet121", classes=1000, pretrained=True)
    assert all(map(torch.equal, network.state_dict().values(), state.values()))
