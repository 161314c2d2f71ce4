"""Parts of a network: its stages and head, recorded inputs and outputs, replaced modules."""

import pytest
import torch
from torch import nn

from reference import quantizers as literal
from spequant.methods.parts import Recorder, part_of, replaced, rounded, stages_of
from spequant.models import vgg16_bn
from spequant.networks import head_of


def test_stages_and_head_are_found():
    network = vgg16_bn()
    assert stages_of(network) == (*(f"stages.{i}" for i in range(5)), "linear")
    assert head_of(network) == "linear"
    nested = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 2))
    assert stages_of(nested) == ("0.0", "0.2", "1")
    with pytest.raises(ValueError, match="ReLU has no linear"):
        head_of(nn.ReLU())


def test_missing_modules_and_those_that_do_not_run_are_named(floating):
    with pytest.raises(ValueError, match=r"no module 'fc'; there are conv1"), Recorder(["fc"]).on(floating):
        pass
    with pytest.raises(RuntimeError, match="linear did not run"), Recorder(["linear"]).on(floating):
        pass


def test_a_recorder_keeps_inputs_or_outputs_and_leaves_no_hook(floating, batch):
    input_recorder, output_recorder = Recorder(["linear"], inputs=True), Recorder(["conv1", "linear"])
    with input_recorder.on(floating) as inputs, output_recorder.on(floating) as outputs:
        output = floating(batch[0])
    assert outputs["linear"] is output and torch.equal(outputs["conv1"], floating.conv1(batch[0]))
    assert torch.equal(floating.linear(inputs["linear"]), output)
    values = dict(inputs)
    floating(2 * batch[0])
    assert input_recorder.values["linear"] is values["linear"]


def test_replaced_modules_are_put_back_after_an_exception(floating):
    original = floating.linear
    with pytest.raises(KeyError), replaced(floating, {"linear": nn.Identity()}) as network:
        assert isinstance(network.linear, nn.Identity)
        raise KeyError
    assert floating.linear is original


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_rounded_equals_its_numpy_reference(bits):
    x = torch.randn(5, 7, requires_grad=True)
    largest = float(x.detach().abs().max())
    values = rounded(x, bits)
    torch.testing.assert_close(
        values.detach().double(),
        torch.tensor(literal.symmetric(x.detach().double().numpy(), largest, bits)),
        rtol=0,
        atol=1e-6,
    )
    values.sum().backward()
    assert torch.equal(x.grad, torch.ones_like(x))  # straight-through
    positive = x.detach().abs()
    step = largest / (2**bits - 1)
    torch.testing.assert_close(rounded(positive, bits), torch.round(positive / step) * step, rtol=0, atol=1e-6)


def test_a_name_stands_for_one_module_inside_any_wrapper():
    inner = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Linear(2, 2)))
    for model in (inner, nn.ModuleDict({"module": inner}), nn.ModuleDict({"module": nn.ModuleDict({"model": inner})})):
        assert part_of(model, "0") is inner[0] and part_of(model, "1.0") is inner[1][0]
    heads = nn.ModuleDict({name: nn.ModuleDict({"fc": nn.Linear(2, 2)}) for name in ("first", "second")})
    assert part_of(heads, "second.fc") is heads["second"]["fc"]
    with pytest.raises(ValueError, match=r"'fc' may be first\.fc or second\.fc"):
        part_of(heads, "fc")
