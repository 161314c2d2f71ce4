"""Data configurations of networks, against those of torchvision and timm."""

import json
from dataclasses import asdict

import pytest
import torch

from spequant.data import Configuration, Crop, configuration_from, data_configuration

pytest.importorskip("timm")


def test_configurations_equal_those_of_torchvision():
    from torchvision import models

    configurations = set()
    for name in models.list_models(module=models):
        config, preset = data_configuration(f"torchvision/{name}"), models.get_model_weights(name).DEFAULT.transforms()
        crop = Crop(config.size, config.crop_pct, config.interpolation, config.crop_mode).transform().transforms
        assert [crop[0].size, crop[1].size] == [preset.resize_size[0], (preset.crop_size[0],) * 2], name
        assert crop[0].interpolation == preset.interpolation, name
        if name not in ("googlenet", "inception_v3"):  # torchvision normalises a second time inside these networks
            assert (config.mean, config.std) == (tuple(preset.mean), tuple(preset.std)), name
        configurations.add(config)
    assert len(configurations) > 10
    with pytest.raises(ValueError, match=r"network\.name is 'torchvision/x'"):
        data_configuration("torchvision/x")


def test_configurations_equal_those_of_timm():
    assert data_configuration("resnet18") == data_configuration("") == data_configuration("torchvision/alexnet")
    config = data_configuration("timm/mobilenetv3_large_100.ra_in1k")
    assert (config.size, config.crop_pct, config.interpolation, config.mean[0]) == (224, 0.875, "bicubic", 0.485)
    assert data_configuration("timm/vit_tiny_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    for wrong in ("timm/resnet18x", "timm/resnet18.nope"):
        with pytest.raises(ValueError, match=rf"network\.name is '{wrong}'"):
            data_configuration(wrong)


def test_googlenets_images_are_from_minus_one_to_one():
    """torchvision scales the images in the network; here the mean and deviation of the data do the same."""
    import torchvision

    x = torch.rand(2, 3, 8, 8)
    network = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False, transform_input=True)
    usual, config = data_configuration("torchvision/resnet18"), data_configuration("torchvision/googlenet")

    def normalise(config):
        return (x - torch.tensor(config.mean).view(-1, 1, 1)) / torch.tensor(config.std).view(-1, 1, 1)

    torch.testing.assert_close(network._transform_input(normalise(usual)), normalise(config))


def test_a_configuration_comes_back_from_json():
    config = Configuration((0.5,), (0.25,), 0.9, "bicubic", 32, "squash")
    assert configuration_from(json.loads(json.dumps(asdict(config)))) == config
    for change, named in (
        ({"mean": [0.5, 0.5]}, r"mean is \(0\.5, 0\.5\)"),
        ({"std": [0]}, r"std \(0,\)"),
        ({"std": ["a"]}, "std"),
        ({"mean": [], "std": []}, "mean"),
        ({"size": "big"}, "size is 'big'"),
        ({"size": 0}, "size is 0"),
        ({"crop_pct": 2}, "crop_pct is 2"),
        ({"crop_mode": "none"}, "crop_mode is 'none'"),
        ({"interpolation": 3}, "interpolation is 3"),
        ({"other": 3}, "other"),
    ):
        with pytest.raises(ValueError, match=named):
            configuration_from({**asdict(config), **change})
    with pytest.raises(ValueError, match="images is 3"):
        configuration_from(3)
