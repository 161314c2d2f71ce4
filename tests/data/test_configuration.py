"""What networks expect of their images, as torchvision and timm say it."""

import pytest
import torch

from spequant.data import Crop, data_configuration

pytest.importorskip("timm")


def test_torchvision_says_what_its_networks_expect():
    from torchvision import models

    different = set()
    for name in models.list_models(module=models):
        about, told = data_configuration(f"torchvision/{name}"), models.get_model_weights(name).DEFAULT.transforms()
        crop = Crop(about.size, about.crop_pct, about.interpolation, about.crop_mode).transform().transforms
        assert [crop[0].size, crop[1].size] == [told.resize_size[0], (told.crop_size[0],) * 2], name
        assert crop[0].interpolation == told.interpolation, name
        if name not in ("googlenet", "inception_v3"):  # whose networks normalise anew
            assert (about.mean, about.std) == (tuple(told.mean), tuple(told.std)), name
        different.add(about)
    assert len(different) > 10
    with pytest.raises(ValueError, match=r"network\.name is 'torchvision/x'"):
        data_configuration("torchvision/x")


def test_timm_says_what_its_networks_expect():
    assert data_configuration("resnet18") == data_configuration("") == data_configuration("torchvision/alexnet")
    found = data_configuration("timm/mobilenetv3_large_100.ra_in1k")
    assert (found.size, found.crop_pct, found.interpolation, found.mean[0]) == (224, 0.875, "bicubic", 0.485)
    assert data_configuration("timm/vit_tiny_patch16_224.augreg_in21k").mean == (0.5, 0.5, 0.5)
    for wrong in ("timm/resnet18x", "timm/resnet18.nope"):
        with pytest.raises(ValueError, match=rf"network\.name is '{wrong}'"):
            data_configuration(wrong)


def test_googlenets_images_are_from_minus_one_to_one():
    """What torchvision puts into the network with published weights, the data's mean and deviation do."""
    import torchvision

    x = torch.rand(2, 3, 8, 8)
    network = torchvision.models.googlenet(weights=None, init_weights=False, aux_logits=False, transform_input=True)
    usual, own = data_configuration("torchvision/resnet18"), data_configuration("torchvision/googlenet")

    def normalised(about):
        return (x - torch.tensor(about.mean).view(-1, 1, 1)) / torch.tensor(about.std).view(-1, 1, 1)

    torch.testing.assert_close(network._transform_input(normalised(usual)), normalised(own))
