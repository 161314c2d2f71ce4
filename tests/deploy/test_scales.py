"""Results of layers: after `quantize_biases` none lies near a tie, and other last bits change no code."""

from fractions import Fraction

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import Twin, align_ranges, lower, quantize_biases
from spequant.deploy.last_bits import other_last_bits
from spequant.deploy.scales import PARTS, odd_parts, ratios
from spequant.quantizers import LSQ, PACT, SAWB
from support.integer_networks import small
from support.residual import Residual, prepared

SLOW = pytest.mark.slow

X = torch.randn(128, 1, 12, 12, generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def trained(network=small, bits=4, act=PACT, **options):
    """As training leaves it: batch norms with numbers of their own, one of them of both signs and a zero."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = network()
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d):
                m.weight.uniform_(0.5, 1.5)
                m.bias.normal_(0.3, 0.3)
                m.weight[0] *= -1
                m.weight[1] = 0
        spequant.reestimate_batch_norm(model, [X])
        model = spequant.prepare(model, weight=SAWB(bits), act=act(bits), **options)
        spequant.calibrate(model, [X], samples=len(X))
    return model.eval()


def finished(model, x=X):
    align_ranges(model, x[:1])
    quantize_biases(model, x[:1])
    return lower(model, x[:1])


class Mixed(nn.Module):
    """A transposed layer, one of groups, one of one dimension and a batch norm on codes."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
        self.up, self.after = nn.ConvTranspose2d(4, 6, 2, stride=2, bias=False), nn.BatchNorm2d(6)
        self.depthwise, self.last_norm = nn.Conv2d(6, 6, 3, groups=6, stride=2), nn.BatchNorm2d(6)
        self.linear, self.norm1d, self.last = nn.Linear(6 * 81, 8), nn.BatchNorm1d(8), nn.Linear(8, 3)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = torch.relu(self.last_norm(self.depthwise(torch.relu(self.after(self.up(x))))))
        return self.last(torch.relu(self.norm1d(self.linear(x.flatten(1)))))


@pytest.mark.parametrize("ratio", [3e-7, 0.0004, 1 / 1023, 0.00098, 2 / 1023, 0.0113, 0.31, 1.0, 2.5, 41.7])
def test_a_ratio_becomes_an_odd_part_nearby(ratio):
    found = float(odd_parts(torch.tensor([ratio], dtype=torch.float64)))
    part = Fraction(found).limit_denominator(10**7)
    assert part.denominator % 2 == 1 and abs(found / ratio - 1) <= 1 / 1000
    least = min(abs(part * n - (part * n).__floor__() - Fraction(1, 2)) for n in range(4000))
    assert least >= Fraction(1, 2 * part.denominator)
    assert PARTS <= part.denominator <= max(2 * PARTS, 1.01 / ratio)
    again = float(odd_parts(torch.tensor([found * (1 + 1e-7)], dtype=torch.float64)))
    assert again == found


@pytest.mark.parametrize("network", [small, Mixed])
@pytest.mark.parametrize(
    ("bits", "act"), [(2, PACT), pytest.param(4, PACT, marks=SLOW), pytest.param(3, LSQ, marks=SLOW)]
)
def test_ratios_of_layers_before_a_batch_norm_are_odd_parts(network, bits, act):
    model = trained(network, bits, act)
    before = {id(m): m.weight.clone() for m in model.modules() if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d)}
    program = finished(model)
    layers = [op for op in program.weighted if op.gain is not None and op.grid is not None]
    assert len(layers) >= 3
    finest = {id(op.gain): op for op in sorted(layers, key=lambda op: -op.grid.step)}
    for op in finest.values():
        ratio = ratios(op)
        there = ratio > 0
        torch.testing.assert_close(ratio[there], odd_parts(ratio[there]), rtol=1e-6, atol=0)
    for m in model.modules():
        if id(m) in before:
            assert torch.allclose(m.weight, before[id(m)], rtol=1e-3, atol=0)


@pytest.mark.parametrize("network", [small, Mixed])
@pytest.mark.parametrize("bits", [2, pytest.param(4, marks=SLOW)])
def test_other_last_bits_change_no_code(network, bits):
    model = trained(network, bits)
    program = finished(model)
    with torch.no_grad():
        expected = model(X)
        with other_last_bits(model):
            moved = model(X)
    for got in (moved, Twin(program)(X)):
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def on_ties(model):
    """Ratios as powers of two, of which every second sum is on a tie, and biases as whole numbers."""
    for op in lower(model, X[:1]).weighted:
        if op.gain is not None and op.grid is not None:
            ratio = ratios(op)
            op.gain.copy_(op.gain * torch.where(ratio > 0, torch.exp2(torch.log2(ratio).round()) / ratio, 1.0))
    for op in lower(model, X[:1]).weighted:
        if op.gain is not None and op.grid is not None:
            unit = (op.step * op.scale).abs().clamp_min(1e-9)
            op.bias.add_((op.offset / unit).round() * unit - op.offset)


def test_before_that_they_do():
    model = trained(small, 4)
    align_ranges(model, X[:1])
    on_ties(model)

    @torch.no_grad()
    def differing():
        expected = model(X)
        with other_last_bits(model):
            return int(((model(X) - expected).abs().amax(1) > 1e-3).sum())

    assert differing() > 64
    quantize_biases(model, X[:1])
    assert differing() == 0


def test_what_is_added_to_sums_stays_but_for_rounding():
    model = trained(small, 4)
    align_ranges(model, X[:1])
    before = {(op.name, op.grid): op for op in lower(model, X[:1]).weighted}
    quantize_biases(model, X[:1])
    for op in lower(model, X[:1]).weighted:
        old = before[op.name, op.grid]
        unit = (op.step * op.integers.scale).double().abs()
        moved = (op.offset - old.offset).abs()
        assert bool((moved <= 0.2 * (1.0 if op.grid is None else op.grid.step) + unit).all())


def test_a_second_call_changes_nothing():
    model = trained(Mixed, 3)
    finished(model)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    finished(model)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_layers_without_a_batch_norm_keep_their_weights():
    model = prepared(4, PACT, Residual)
    weights = {n: p.clone() for n, p in model.named_parameters() if n.endswith("weight")}
    quantize_biases(model, X[:1])
    assert all(torch.equal(p, weights[n]) for n, p in model.named_parameters() if n in weights)
