"""A recipe's float network and the weights that it starts from."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from spequant.app.recipes.recipe import Network
from spequant.app.runs.weights import build_network, load_teacher
from spequant.data import load_digits
from spequant.models import resnet8


def test_weights_of_other_classes_ask_for_a_new_head(tmp_path):
    train, _ = load_digits()
    known = resnet8(classes=7, in_channels=1)
    save_file(known.state_dict(), tmp_path / "seven.safetensors")
    choice = Network(name="resnet8", weights=tmp_path / "seven.safetensors")
    with pytest.raises(ValueError, match=r"size mismatch.* 10 classes.*--network.new-head"):
        build_network(choice, train)
    made = build_network(replace(choice, new_head=True), train)
    assert torch.equal(made.conv1.weight, known.conv1.weight) and made.linear.weight.shape[0] == 10


def test_a_network_starts_from_the_weights_of_a_run(digits_run):
    """Of a low-bit one from those before rounding."""
    train, _ = load_digits()
    low = build_network(Network(name="resnet8", weights=digits_run), train)
    start = build_network(Network(name="resnet8", weights=digits_run.parent / "digits-float"), train)
    assert type(low) is type(start) and low.state_dict().keys() == start.state_dict().keys()
    assert len(low.conv1.weight.unique()) > 100 and not torch.equal(low.conv1.weight, start.conv1.weight)


def test_a_teacher_of_other_classes_is_refused(tmp_path):
    torch.save(resnet8(classes=7, in_channels=1).state_dict(), tmp_path / "seven.pt")
    with pytest.raises(ValueError, match=r"7 classes.* 10 classes.*method\.teacher"):
        load_teacher(resnet8(in_channels=1), tmp_path / "seven.pt")


def test_a_file_of_several_states(tmp_path):
    train, _ = load_digits()
    known = resnet8(in_channels=1)
    torch.save({"model": resnet8(in_channels=1).state_dict(), "ema": known.state_dict()}, tmp_path / "net.pt")
    made = build_network(Network(name="resnet8", weights=tmp_path / "net.pt:ema"), train)
    assert torch.equal(made.linear.weight, known.linear.weight)
