"""This project's networks: parameters, shapes, marked additions, agreement with torchvision's, float weights."""

import pytest
import torch
import torch.nn.functional as F

from spequant import models
from spequant.data import eval_batches, load_cifar10
from spequant.models.resnet_cifar import OptionA
from spequant.train import evaluate

PARAMETERS = {
    "resnet8": 75_290,
    "resnet20": 269_722,
    "resnet32": 464_154,
    "resnet44": 658_586,
    "resnet56": 853_018,
    "vgg16_bn": 14_724_042,
    "mobilenet_v1_025": 215_642,
    "mobilenet_v2": 2_236_682,
}
IMAGENET = {"resnet18": 11_689_512, "resnet34": 21_797_672}
WEIGHTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th", "resnet56": "resnet56-4bfd9763.th"}
ACCURACY = {"resnet20": 91.73, "resnet32": 92.63, "resnet56": 93.39}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = getattr(models, name)(in_channels=3)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


@pytest.mark.parametrize("name", IMAGENET)
def test_torchvisions_networks_with_marked_additions(name):
    """The same outputs from the same weights, under the same names; other numbers of classes and channels."""
    theirs = getattr(pytest.importorskip("torchvision.models"), name)().eval()
    ours = getattr(models, name)()
    ours.load_state_dict(theirs.state_dict())
    assert sum(p.numel() for p in ours.parameters()) == IMAGENET[name]
    x = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours.eval()(x), theirs(x))
    marked = sum(getattr(m, "residual_addition", False) for m in ours.modules())
    assert marked == {"resnet18": 8, "resnet34": 16}[name]
    assert getattr(models, name)(classes=7, in_channels=1)(torch.zeros(2, 1, 32, 32)).shape == (2, 7)


def test_option_a_shortcut_is_a_strided_identity_convolution():
    x = torch.randn(2, 16, 8, 8)
    kernel = torch.zeros(32, 16, 1, 1)
    for channel in range(16):
        kernel[8 + channel, channel] = 1
    assert torch.equal(OptionA(2, 8)(x), F.conv2d(x, kernel, stride=2))


@pytest.mark.parametrize("name", ["vgg16_bn", "mobilenet_v2", "resnet20"])
def test_other_images_and_classes(name):
    model = getattr(models, name)(classes=100, in_channels=1)
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 100)


@pytest.mark.parametrize(("name", "additions"), [("resnet20", 9), ("mobilenet_v2", 10), ("vgg16_bn", 0)])
def test_residual_additions_are_marked(name, additions):
    marked = [m for m in getattr(models, name)().modules() if getattr(m, "residual_addition", False)]
    assert len(marked) == additions and all(isinstance(m, models.ResidualAdd) for m in marked)


def test_vgg_ends_in_the_usual_pooling():
    model = models.vgg16_bn().eval()
    x = torch.randn(2, 3, 32, 32)
    literal = x
    for stage in model.stages:
        literal = F.max_pool2d(stage(literal), 2)
    torch.testing.assert_close(model(x), model.linear(literal.flatten(1)))


def test_mobilenet_v2_computes_as_torchvisions():
    torchvision = pytest.importorskip("torchvision")
    ours, other = models.mobilenet_v2().eval(), torchvision.models.mobilenet_v2(num_classes=10).eval()
    other.features[0][0].stride = other.features[2].conv[1][0].stride = (1, 1)  # the strides for small images
    other.load_state_dict(dict(zip(other.state_dict(), ours.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(ours(x), other(x))
    shapes = []
    ours.conv2.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape)))
    ours(x)
    assert shapes == [(2, 320, 4, 4)]


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_float_accuracy_on_cifar10(name, shared_data):
    model = getattr(models, name)()
    models.load_weights(model, shared_data / "weights" / WEIGHTS[name])
    _, test = load_cifar10(shared_data)
    assert round(evaluate(model, eval_batches(test, 500)).accuracy, 2) == ACCURACY[name]
