"""The CIFAR ResNets: sizes, shortcuts, names, float weights."""

import pytest
import torch
import torch.nn.functional as F

from spequant import models
from spequant.data import eval_batches, load_cifar10
from spequant.models.resnet_cifar import OptionA
from spequant.train import evaluate

PARAMETERS = {"resnet8": 75_290, "resnet20": 269_722, "resnet32": 464_154, "resnet44": 658_586, "resnet56": 853_018}
WEIGHTS = {"resnet20": "resnet20-12fca82f.th", "resnet32": "resnet32-d509ac18.th", "resnet56": "resnet56-4bfd9763.th"}
ACCURACY = {"resnet20": 91.73, "resnet32": 92.63, "resnet56": 93.39}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_count(name):
    model = getattr(models, name)(in_channels=3)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)


def test_option_a_shortcut_is_a_strided_identity_convolution():
    x = torch.randn(2, 16, 8, 8)
    kernel = torch.zeros(32, 16, 1, 1)
    for channel in range(16):
        kernel[8 + channel, channel] = 1
    assert torch.equal(OptionA(2, 8)(x), F.conv2d(x, kernel, stride=2))


def test_residual_additions_are_marked():
    marked = [m for m in models.resnet20().modules() if getattr(m, "residual_addition", False)]
    assert len(marked) == 9


def test_weight_file_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.th"):
        models.load_weights(models.resnet8(), tmp_path / "absent.th")
    (tmp_path / "cut.th").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"cut\.th"):
        models.load_weights(models.resnet8(), tmp_path / "cut.th")
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(1)}}, tmp_path / "other.th")
    with pytest.raises(ValueError, match=r"other\.th does not fit CifarResNet"):
        models.load_weights(models.resnet8(), tmp_path / "other.th")


@pytest.mark.slow
@pytest.mark.parametrize("name", WEIGHTS)
def test_float_accuracy_on_cifar10(name, shared_data):
    model = getattr(models, name)()
    models.load_weights(model, shared_data / "weights" / WEIGHTS[name])
    _, test = load_cifar10(shared_data)
    assert round(evaluate(model, eval_batches(test, 500)).accuracy, 2) == ACCURACY[name]
