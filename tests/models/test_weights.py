"""Float weights from files: damaged files, weights of another network, another head."""

import argparse

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

import spequant
from spequant.models import load_weights, make_network, resnet8
from spequant.models.weights import OtherHead
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
    with pytest.raises(OtherHead, match=r"size mismatch for linear\.weight: \[7, .*\[3, .* 7 classes.* 3 classes"):
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


def net(outputs=3):
    return nn.Sequential(nn.Linear(2, 4), nn.Linear(4, outputs))


def under(prefix, state):
    return {prefix + name: tensor for name, tensor in state.items()}


REST = {"epoch": 3, "optimizer": {"state": {}, "param_groups": []}, "args": argparse.Namespace(lr=0.1), "ema": None}
SHAPES = {
    "a state": lambda state: state,
    "model": lambda state: {"model": state, **REST},
    "state_dict": lambda state: {"state_dict": under("model.", state), "best": np.float64(91.2)},
    "model_state_dict": lambda state: {"model_state_dict": under("module.", state), "epoch": 3},
    "net": lambda state: {"net": under("module.", state), "acc": 93.1},
    "compiled": lambda state: under("_orig_mod.module.", state),
    "compiled in parallel": lambda state: under("module._orig_mod.", state),
    "with other tensors": lambda state: {"model": state, "rng": {"cpu": torch.zeros(3)}},
    "averaged": lambda state: {"n_averaged": torch.tensor(3), **under("module.", state)},
}


@pytest.mark.parametrize("shape", SHAPES)
def test_the_usual_shapes_of_a_file(shape, tmp_path):
    source, target = net(), net()
    torch.save(SHAPES[shape](source.state_dict()), tmp_path / "net.pt")
    load_weights(target, tmp_path / "net.pt")
    assert all(map(torch.equal, target.state_dict().values(), source.state_dict().values()))


def test_of_several_states_one_is_named(tmp_path):
    source, target = net(), net()
    averaged = AveragedModel(source).state_dict()
    torch.save({"model": net().state_dict(), "model_ema": averaged, **REST}, tmp_path / "net.pt")
    load_weights(target, f"{tmp_path}/net.pt:model_ema")
    assert torch.equal(target[1].weight, source[1].weight)
    with pytest.raises(ValueError, match=r"several states; .*net\.pt:model or .*net\.pt:model_ema"):
        load_weights(target, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"key 'ema'; .* model, model_ema"):
        load_weights(target, f"{tmp_path}/net.pt:ema")
    torch.save(source.state_dict(), tmp_path / "a:b.pt")  # a colon of the name itself
    load_weights(target, tmp_path / "a:b.pt")


class Whole(nn.Linear):
    """A network of one's own, to be pickled."""


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("content", [Whole(2, 4), {"model": net().state_dict(), "head": Whole(2, 4)}])
def test_a_pickled_network_is_refused_in_one_line_that_says_what_to_do(content, old, tmp_path):
    torch.save(content, tmp_path / "net.pt", _use_new_zipfile_serialization=not old)
    with pytest.raises(ValueError, match=r"net\.pt .*\.Whole.* torch\.save\(.*state_dict\(\)") as refused:
        load_weights(net(), tmp_path / "net.pt")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ({"epoch": 3, "model": {}}, "holds epoch, model"),
        ([torch.zeros(2)], "holds list"),
        (under("0.", net().state_dict()), r"lacks 0\.weight, 0\.bias, 1\.weight and 1 more; .*has 0\.0\.weight"),
        (nn.Sequential(nn.Linear(2, 5), nn.Linear(5, 3)).state_dict(), r"0\.weight: \[5, 2\] .*\[4, 2\]"),
    ],
)
def test_what_a_file_holds_otherwise_is_named(content, named, tmp_path):
    torch.save(content, tmp_path / "net.pt")
    with pytest.raises(ValueError, match=named) as error:
        load_weights(net(), tmp_path / "net.pt")
    assert not isinstance(error.value, OtherHead)


@pytest.mark.filterwarnings("ignore:.torch.jit")
def test_torchscript_says_what_to_do(tmp_path):
    (tmp_path / "net.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"net\.pt is no readable"):
        load_weights(net(), tmp_path / "net.pt")
    torch.jit.save(torch.jit.script(net()), tmp_path / "script.pt")
    with pytest.raises(ValueError, match=r"script\.pt .*TorchScript; .*torch\.jit\.load"):
        load_weights(net(), tmp_path / "script.pt")
