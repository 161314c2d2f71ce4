"""Data configurations of networks, against those of torchvision and timm."""

import pytest
import torch

from spequant.data import Crop, data_configuration

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
