"""What a network costs: bits, bytes and operations, of the network and of its file."""

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import lower, model_costs, program_costs, totals
from spequant.models import resnet8
from spequant.policies import LowBit
from spequant.quantizers import LSQ
from support.integer_networks import Shared, prepared


def test_costs_of_a_network_and_of_its_file_agree():
    x = torch.randn(16, 1, 8, 8)
    model = prepared(resnet8(in_channels=1), x)
    costs = {c.name: c for c in model_costs(model, x)}
    conv = costs["layer1.0.conv1"]
    assert (conv.weight_bits, conv.act_bits, conv.weights) == (2, 2, 16 * 16 * 9)
    assert conv.size == 16 * 16 * 9 // 4 and conv.macs == 16 * 16 * 9 * 64 and conv.bit_operations == conv.macs * 4
    assert costs["linear"].size == 640 + 40 and costs["linear"].macs == 640
    total = totals(list(costs.values()))
    assert total["macs"] == sum(c.macs for c in costs.values())
    full = sum(4 * m.weight.numel() for m in resnet8(in_channels=1).modules() if isinstance(m, nn.Conv2d)) + 2600
    assert total["times_smaller_than_fp32"] == pytest.approx(full / total["size"])
    of_file = {c.name: c for c in program_costs(lower(model, x[:1]))}
    for name, cost in costs.items():
        assert (of_file[name].weight_bits, of_file[name].act_bits) == (cost.weight_bits, cost.act_bits)
        assert of_file[name].macs == cost.macs
    with spequant.precision(model, LowBit(4)):
        assert {c.act_bits for c in model_costs(model, x)} == {8, 4}


def test_costs_of_a_float_network():
    plain = model_costs(resnet8(in_channels=1), torch.randn(1, 1, 8, 8))
    assert {c.weight_bits for c in plain} == {32} and totals(plain)["times_smaller_than_fp32"] == 1
    turned = model_costs(nn.ConvTranspose2d(3, 5, 2, stride=2), torch.randn(1, 3, 4, 4))
    assert turned[0].macs == 3 * 5 * 2 * 2 * 16
    with pytest.raises(ValueError, match="nothing to count"):
        model_costs(nn.Sequential(nn.ReLU()), torch.randn(1, 3))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.ConvTranspose1d(16, 4, 2, stride=2, groups=2), (1, 16, 6)),
        (nn.ConvTranspose3d(3, 5, 2, stride=2), (1, 3, 2, 3, 4)),
        (nn.Conv1d(8, 6, 3, groups=2), (1, 8, 9)),
        (nn.Conv2d(8, 8, (3, 1), groups=8, stride=2), (1, 8, 9, 5)),
        (nn.Linear(6, 4), (1, 5, 6)),
    ],
)
def test_multiply_accumulates_are_those_of_a_loop_over_weights(layer, shape):
    """Each weight meets every position of the output; of transposed convolutions of the input."""
    x = torch.randn(shape)
    met = x if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose3d) else layer(x)
    positions = met[0, ..., 0].numel() if isinstance(layer, nn.Linear) else met[0, 0].numel()
    (cost,) = model_costs(nn.Sequential(layer), x)
    assert cost.macs == layer.weight.numel() * positions


def test_a_layer_in_two_places_is_one_layer_with_all_its_calls():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            head = nn.Linear(8, 8)
            self.heads = nn.ModuleList([head, head])

        def forward(self, x):
            for head in self.heads:
                x = head(x)
            return x

    for model in (Twice(), prepared(Twice(), torch.randn(32, 8))):
        (cost,) = model_costs(model, torch.randn(1, 8))
        assert (cost.name, cost.macs) == ("heads.0", 128)


def test_what_a_quantizer_multiplies_to_find_its_range_is_not_the_layers():
    class Searching(LSQ):
        def forward(self, x):
            torch.ones(3, 4) @ torch.ones(4, 5)
            return super().forward(x)

    x = torch.randn(32, 8)
    model = spequant.prepare(
        nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)), weight=LSQ(4), act=Searching(4)
    )
    spequant.calibrate(model, [x], samples=32, reestimate=False)
    assert [cost.macs for cost in model_costs(model, x)] == [32, 8]


def test_a_layer_that_is_called_twice_counts_twice():
    (cost,) = [c for c in model_costs(Shared(), torch.randn(2, 1, 8, 8)) if c.name == "again"]
    assert cost.weights == 144 and cost.macs == 144 * (64 + 16)
