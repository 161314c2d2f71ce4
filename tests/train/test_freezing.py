"""Freezing of oscillating weights: against its literal twin, with ranges that move, saved and resumed."""

import copy

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import spequant
from reference.freezing import Freezing
from spequant.layers import QuantizedLayer, weight_quantizers
from spequant.quantizers import LSQ, PACT, SAWB, DoReFa, LeastSquares, MinMax
from spequant.train.freezing import OscillationFreezer, annealed
from support.equations import calibrated

CASES = {
    "lsq": (LSQ(2), False),
    "lsq per channel": (LSQ(3), True),
    "sawb": (SAWB(2), False),
    "sawb per channel": (SAWB(4), True),
    "least squares": (LeastSquares(3), False),
    "least squares per channel": (LeastSquares(2, zero=False), True),
    "minmax": (MinMax(3), False),
    "dorefa": (DoReFa(2), True),
}


def network(weight=None, per_channel=False, ends=8):
    torch.manual_seed(1)
    layers = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Conv2d(6, 4, 1)
    options = {"depthwise": weight, "ends": (weight or 2, 8)} if per_channel else {"ends": ends}
    model = spequant.prepare(nn.Sequential(*layers), weight=weight or LSQ(2), act=PACT(8), **options)
    return calibrated(model, (torch.randn(32, 3, 4, 4),))


class Training:
    """A model, an optimizer with momentum and decay, and gradients noisy enough for weights to oscillate."""

    def __init__(self, model, **options):
        self.model = model
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.5, weight_decay=1e-3)
        self.freezer = OscillationFreezer(model, **({"threshold": 0.0371, "momentum": 0.02} | options))

    def optimize(self, seed):
        generator = torch.Generator().manual_seed(seed)
        self.optimizer.zero_grad()
        self.model(torch.randn(8, 3, 4, 4, generator=generator)).square().mean().backward()
        for p in self.model.parameters():
            if p.grad is not None and p.dim() == 4:
                p.grad += torch.randn(p.shape, generator=generator) * p.detach().abs().mean()
        self.optimizer.step()


@pytest.mark.parametrize("case", CASES)
def test_equals_its_literal_twin(case):
    weight, per_channel = CASES[case]
    training = Training(network(weight, per_channel, ends=(weight, 8)))
    model, freezer = training.model, training.freezer
    layer = model[1]
    plain = layer.weight_quantizer.like()  # an equal quantizer without frozen codes
    plain.calibrated = True

    def encode(weights):
        plain.load_state_dict({k: v for k, v in layer.weight_quantizer.state_dict().items() if "frozen" not in k})
        return [int(c) for c in plain.encode(torch.tensor(weights).view_as(layer.layer.weight)).flatten()]

    twin = Freezing(layer.layer.weight.flatten().tolist(), encode, 0.0371, 0.02)
    highs = []
    for step in range(60):
        training.optimize(step)
        twin.step(layer.layer.weight.flatten().tolist())
        freezer.step()
        state = freezer.watched["1"].state
        assert state["codes"].flatten().tolist() == twin.codes, step
        assert (
            state["frozen"].flatten().tolist() == twin.frozen and layer.layer.weight.flatten().tolist() == twin.weights
        )
        with torch.no_grad():
            low, high = layer.weight_quantizer.bounds(layer.layer.weight)
            used = layer.weight_quantizer(layer.layer.weight)
            codes = layer.weight_quantizer.encode(layer.layer.weight)
        # A frozen weight keeps its code; the codes of the others are those of the forward pass.
        assert all(int(c) == t for c, t, f in zip(codes.flatten(), twin.codes, twin.frozen, strict=True) if f)
        value = low + codes * (high - low) / (plain.level_count() - 1)
        torch.testing.assert_close(used, value)
        highs.append(float(high.mean()))
    assert 3 < sum(twin.frozen) < len(twin.frozen)
    live = torch.tensor([not f for f in twin.frozen])
    for name in ("average", "frequency"):
        expected = torch.tensor(getattr(twin, name))[live]
        torch.testing.assert_close(state[name].flatten()[live], expected, rtol=0, atol=1e-4)
    assert case == "dorefa" or max(highs) > 1.05 * min(highs)  # the range did move


def by_hand():
    """A 2-bit LSQ layer of step 1, codes 0 .. 3 for -2 .. 1, and its freezer."""
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 1, bias=False)), weight=LSQ(2), act=None, ends=(LSQ(2), None))
    with torch.no_grad():
        model[0].layer.weight.copy_(torch.tensor([[-1.4, -1.6, 0.1, 0.9]]))
    spequant.calibrate(model, [torch.randn(8, 4)], samples=8)
    with torch.no_grad():
        model[0].weight_quantizer.step.fill_(1.0)
    return model, OscillationFreezer(model, threshold=0.2, momentum=0.1)


def test_an_oscillating_weight_freezes_and_stays_and_others_do_not():
    model, freezer = by_hand()
    weight, quantizer = model[0].layer.weight, model[0].weight_quantizer
    drifting = torch.linspace(-1.6, 0.9, 30)
    for i in range(30):
        with torch.no_grad():
            # One weight oscillates in each step, one passes three codes one way, one keeps its code, one changes once.
            weight.copy_(
                torch.tensor([[-1.6 if i % 2 else -1.4, drifting[i], 0.1 + 0.3 * (i % 2), 0.9 - 0.7 * (i > 9)]])
            )
        freezer.step()
    assert quantizer.frozen.tolist() == [[True, False, False, False]] and freezer.frozen_share() == 0.25
    code = int(quantizer.frozen_codes[0, 0])
    assert code in (0, 1)
    frozen_value = float(weight.detach()[0, 0])
    for value in (-5.0, 5.0):
        with torch.no_grad():
            weight.fill_(value)
            quantizer.step.fill_(0.3)
        freezer.step()
        assert float(weight.detach()[0, 0]) == pytest.approx(frozen_value) and float(weight.detach()[0, 1]) == value
        assert quantizer(weight)[0, 0].item() == pytest.approx((code - 2) * 0.3)  # its code, at the new step
    quantizer(weight)[0, 0].backward()  # the step is trained through its code, scaled as LSQ's: 1 / sqrt(4 weights)
    assert weight.grad[0, 0] == 0 and quantizer.step.grad == pytest.approx((code - 2) * 0.5)


def test_the_threshold_can_be_lowered():
    model, freezer = by_hand()
    freezer.threshold = 10.0
    for i in range(30):
        with torch.no_grad():
            model[0].layer.weight[0, 0] = -1.6 if i % 2 else -1.4
        freezer.step()
    assert freezer.frozen_share() == 0
    freezer.threshold = 0.2
    freezer.step()
    assert freezer.frozen_share() == 0.25
    assert [round(annealed(0.1, 0.01, done), 3) for done in (0.0, 0.5, 1.0)] == [0.1, 0.055, 0.01]


def test_eight_bit_ends_are_not_watched():
    freezer = OscillationFreezer(network(), threshold=0.1)
    assert list(freezer.watched) == ["1"]
    model = network(LSQ(8))
    for options, message in [
        ({"threshold": 0.0}, "threshold is 0.0"),
        ({"threshold": 0.1, "momentum": 1.0}, "momentum is 1.0"),
        ({"threshold": 0.1}, "no quantized weight of 4 bits"),
    ]:
        with pytest.raises(ValueError, match=message):
            OscillationFreezer(model, **options)
    fresh = spequant.prepare(nn.Sequential(nn.Linear(4, 4)), weight=LSQ(2), act=None, ends=2)
    with pytest.raises(ValueError, match=r"0: its range .* calibrated"):
        OscillationFreezer(fresh, threshold=0.1)


def test_frozen_codes_are_saved_with_the_model_and_training_resumes():
    full = Training(network())
    for step in range(80):
        full.optimize(step)
        full.freezer.step()
        if step == 39:
            saved = copy.deepcopy(
                (
                    full.model.state_dict(),
                    full.optimizer.state_dict(),
                    full.freezer.state_dict(),
                )
            )
    resumed = Training(network())
    for part, state in zip((resumed.model, resumed.optimizer, resumed.freezer), saved, strict=True):
        part.load_state_dict(state)
    assert resumed.freezer.frozen_share() > 0
    for step in range(40, 80):
        resumed.optimize(step)
        resumed.freezer.step()
    x = torch.randn(4, 3, 4, 4)
    assert torch.equal(resumed.model(x), full.model(x))
    state, expected = resumed.freezer.state_dict(), full.freezer.state_dict()
    assert state.keys() == expected.keys() and all(torch.equal(state[k], expected[k]) for k in state)
    loaded = network()  # without a freezer, as evaluation does
    loaded.load_state_dict(full.model.state_dict())
    assert torch.equal(loaded(x), full.model(x)) and torch.equal(copy.deepcopy(loaded)(x), full.model(x))
    (q,) = [q for q in weight_quantizers(loaded).values() if q.frozen is not None]
    assert q.frozen.any() and OscillationFreezer(loaded, threshold=0.1).frozen_share() == full.freezer.frozen_share()
    with pytest.raises(ValueError, match=r"lacks \['1.average'\] and has \['2'\]"):
        resumed.freezer.load_state_dict({k.replace("1.average", "2"): v for k, v in expected.items()})
    with pytest.raises(ValueError, match=r"1\.average has shape \(2,\)"):
        resumed.freezer.load_state_dict({**expected, "1.average": torch.zeros(2)})


class NoReads(TorchDispatchMode):
    """Refuses operations that read a value back from the device."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func not in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default), func
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("case", CASES)
def test_a_step_reads_nothing_back(case):
    weight, per_channel = CASES[case]
    training = Training(network(weight, per_channel, ends=(weight, 8)))
    with NoReads():
        training.freezer.step()
    with pytest.raises(AssertionError, match="_local_scalar_dense"), NoReads():
        training.freezer.frozen_share()


def test_networks_with_equal_names_and_layers_without_a_name_are_watched():
    two = nn.Sequential(network(), network())
    assert list(OscillationFreezer(two, threshold=0.1).watched) == ["1", "1.1.weight_quantizer"]
    unnamed = nn.Sequential(*(QuantizedLayer(nn.Linear(4, 4), SAWB(2), None) for _ in range(3)))
    assert len(OscillationFreezer(unnamed, threshold=0.1).watched) == 3
