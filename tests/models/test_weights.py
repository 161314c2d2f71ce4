"""Float weights from files: damaged files, weights of another network, another head."""

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spequant
from spequant.models import load_weights, make_network, resnet8
from spequant.networks import head_of
from spequant.quantizers import PACT, SAWB, percentile


def test_weight_file_errors_name_the_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.th"):
        load_weights(resnet8(), tmp_path / "absent.th")
    (tmp_path / "cut.th").write_bytes(b"PK\x03\x04 cut short")
    with pytest.raises(ValueError, match=r"cut\.th"):
        load_weights(resnet8(), tmp_path / "cut.th")
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(1)}}, tmp_path / "other.th")
    with pytest.raises(ValueError, match=r"other\.th does not fit"):
        load_weights(resnet8(), tmp_path / "other.th")


def test_with_a_new_head_all_other_layers_are_loaded(tmp_path):
    source, target = make_network("resnet8", classes=7), make_network("resnet8", classes=3)
    save_file(source.state_dict(), tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match="size mismatch for linear"):
        load_weights(target, tmp_path / "weights.safetensors")
    before = target.linear.weight.clone()
    load_weights(target, tmp_path / "weights.safetensors", new_head=True)
    assert torch.equal(target.linear.weight, before)
    assert torch.equal(target.conv1.weight, source.conv1.weight) and head_of(target) == "linear"
    with pytest.raises(ValueError, match=r"weights\.safetensors does not fit"):  # a new head allows no other network
        load_weights(make_network("resnet20", classes=7), tmp_path / "weights.safetensors", new_head=True)
    with pytest.raises(ValueError, match="has no linear layer"):
        head_of(nn.Sequential(nn.ReLU()))


def test_a_network_that_needs_a_version_in_its_state_is_loaded_from_files(tmp_path):
    """torchvision's MNASNet is one."""
    model = make_network("torchvision/mnasnet0_5", classes=10)
    save_file({k: v.clone() for k, v in model.state_dict().items()}, tmp_path / "net.safetensors")
    other = make_network("torchvision/mnasnet0_5", classes=10)
    load_weights(other, tmp_path / "net.safetensors")
    assert all(map(torch.equal, model.state_dict().values(), other.state_dict().values()))
    quantized = spequant.prepare(model, weight=SAWB(4), act=PACT(4), residual=None)
    x = torch.randn(2, 3, 32, 32)
    spequant.calibrate(quantized, [x], samples=2, rule=percentile(99.9))
    spequant.pack(quantized.eval(), tmp_path / "net.packed")
    loaded = spequant.load_packed(tmp_path / "net.packed", make_network("torchvision/mnasnet0_5", classes=10))
    assert torch.equal(loaded.eval()(x), quantized(x))
