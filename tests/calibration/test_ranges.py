"""`calibrate`: ranges, signs, sharing, batch norm, and layers that never ran."""

import pickle

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import spequant
from spequant.layers import act_quantizers, weight_quantizers
from spequant.methods.base import penalties
from spequant.models import resnet8
from spequant.quantizers import LSQ, PACT, SAWB, DoReFa, LSQPlus, MinMax, percentile


class Attention(nn.Module):
    """Three linears read one tensor."""

    def __init__(self):
        super().__init__()
        self.stem, self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(5))

    def forward(self, x):
        x = self.stem(x).relu()
        return self.out((self.q(x) * self.k(x)).softmax(-1) * self.v(x))


def prepare(model, weight=None, act=None, **options):
    return spequant.prepare(model, weight=weight or SAWB(2), act=act or PACT(2), **options)


@pytest.mark.parametrize("kind", [PACT, LSQ, MinMax])
def test_every_range_changes(kind):
    model = prepare(resnet8(), kind(4), kind(4))
    stored = [q for q in (*act_quantizers(model).values(), *weight_quantizers(model).values()) if q.stored]
    before = [[t.clone() for t in (*q.parameters(), *q.buffers())] for q in stored]
    spequant.calibrate(model, [torch.randn(64, 3, 8, 8)], samples=64)
    for q, old in zip(stored, before, strict=True):
        (new,) = (*q.parameters(), *q.buffers())
        assert new != old[0] and q.calibrated


def test_signs_are_decided_with_a_tolerance_or_by_the_user():
    def signs(x, act=None):
        model = prepare(nn.Sequential(nn.Linear(4, 4)), act=act, ends=2)
        spequant.calibrate(model, [x], samples=len(x))
        return model[0].act_quantizer.signed

    x = torch.rand(64, 4)
    x[0, 0] = -1e-4
    assert signs(x) is False
    assert signs(nn.functional.gelu(torch.randn(64, 4))) is True
    assert signs(x, PACT(2, signed=True)) is True
    assert signs(torch.randn(64, 4), PACT(2, signed=False)) is False


def test_layers_that_read_one_tensor_share_a_quantizer_at_equal_bits():
    model = prepare(Attention())
    spequant.calibrate(model, [torch.randn(64, 4)], samples=64)
    assert model.q.act_quantizer is model.k.act_quantizer is model.v.act_quantizer
    assert model.stem.act_quantizer is not model.q.act_quantizer is not model.out.act_quantizer
    assert list(act_quantizers(model)) == ["stem", "q", "out"]
    model = prepare(Attention(), overrides={"k": 4})
    spequant.calibrate(model, [torch.randn(64, 4)], samples=64)
    assert model.q.act_quantizer is model.v.act_quantizer is not model.k.act_quantizer


def test_inputs_in_other_forms():
    x = torch.randn(64, 4)
    states = []
    for batch, options in (
        (x, {}),
        ((x, "label"), {}),
        ([x], {}),
        ({"input": x}, {}),
        ({"a": x}, {"run": lambda model, batch: model(batch["a"])}),
    ):
        model = prepare(nn.Sequential(nn.Linear(4, 4)) if not isinstance(batch, dict) else nn.Linear(4, 4), ends=2)
        spequant.calibrate(model, [batch], samples=64, **options)
        states.append(float(next(iter(act_quantizers(model).values())).clip.detach()))
    assert len(set(states)) == 1


def test_rule_by_percentile():
    x = torch.rand(5000, 4)
    model = prepare(nn.Linear(4, 4), ends=2)
    spequant.calibrate(model, [x], rule=percentile(90))
    assert float(model.act_quantizer.clip.detach()) == pytest.approx(0.9, abs=0.02)


def test_too_few_samples_and_values_that_are_not_finite():
    model = prepare(nn.Sequential(nn.Linear(4, 4)), ends=2)
    with pytest.raises(ValueError, match=r"64 samples; .*samples=1024"):
        spequant.calibrate(model, [torch.randn(64, 4)])
    with pytest.raises(ValueError, match=r"0: .*NaN or Inf"):
        spequant.calibrate(model, [torch.full((8, 4), torch.nan)], samples=8)
    with pytest.raises(ValueError, match=r"call spequant\.prepare first"):
        spequant.calibrate(nn.Linear(2, 2), [torch.randn(8, 2)], samples=8)


def test_a_layer_that_never_ran_is_named():
    class Bypass(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.unused, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.used(x))

    model = prepare(Bypass())
    with pytest.raises(RuntimeError, match=r"never ran in 1 batches: unused, unused\..*skip="):
        spequant.calibrate(model, [torch.randn(8, 4)], samples=8)
    assert all(q.watch is None for q in act_quantizers(model).values())
    spequant.calibrate(prepare(Bypass(), skip=["unused"]), [torch.randn(8, 4)], samples=8)


def test_a_weight_that_is_read_without_calling_its_layer_is_refused():
    class Bypass(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return nn.functional.linear(x, self.inner.weight)

    model = prepare(Bypass(), ends=2, residual=None)
    with pytest.raises(AttributeError, match=r"^inner is quantized.*skip=\['inner'\]"):
        spequant.calibrate(model, [torch.randn(8, 3, 4)], samples=8)


def test_weights_only_models_and_dorefa():
    for options in ({"act": None, "weight": LSQ(2)}, {"weight": DoReFa(2), "act": DoReFa(2)}):
        model = spequant.prepare(nn.Sequential(nn.Linear(4, 4)), ends=2, **options)
        spequant.calibrate(model, [torch.randn(8, 4)], samples=8)
        assert model(torch.randn(3, 4)).isfinite().all()


@pytest.mark.parametrize("width", [384, 3 * 5 * 7, 96])
def test_every_column_is_sampled_and_a_few_outliers_do_not_decide(width):
    x = torch.rand(1024, width)
    x[:, 1::3] *= 4
    model = spequant.prepare(nn.Sequential(nn.Linear(width, 4)), weight=None, act=PACT(2), ends=2)
    spequant.calibrate(model, [x], rule=percentile(99.0), reestimate=False)
    assert float(act_quantizers(model)["0"].clip.detach()) == pytest.approx(float(x.flatten().quantile(0.99)), rel=0.02)

    x = torch.randn(1024, 4096).relu()
    x[::128, 0] = 100.0  # 8 of 4.2 million values: the largest of each batch
    model = spequant.prepare(nn.Sequential(nn.Linear(4096, 4)), weight=None, act=PACT(2), ends=2)
    spequant.calibrate(model, x.split(128), reestimate=False)
    assert float(act_quantizers(model)["0"].clip.detach()) < 3
    model = spequant.prepare(nn.Sequential(nn.Linear(4096, 4)), weight=None, act=MinMax(8), ends=8)
    spequant.calibrate(model, x.split(128), reestimate=False)
    assert float(act_quantizers(model)["0"].clip.detach()) == 100


class TwoLevels(nn.Module):
    """`head` reads two tensors, and `down` reads only the second of them."""

    def __init__(self):
        super().__init__()
        self.stem, self.down, self.head, self.out = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        first = self.stem(x) * 10
        second = first.relu() * 0.1
        return self.out(self.head(first) + self.head(second) + self.down(second))


def test_a_layer_that_reads_two_tensors_shares_no_quantizer_with_a_layer_that_reads_one():
    torch.manual_seed(1)
    x = torch.randn(256, 4)
    floating = TwoLevels()
    model = spequant.prepare(floating, weight=SAWB(8), act=PACT(8))
    spequant.calibrate(model, [x], samples=256)
    assert model.head.act_quantizer is not model.down.act_quantizer
    assert model.head.act_quantizer.signed and not model.down.act_quantizer.signed
    assert (model(x) - floating(x)).norm() < 0.05 * floating(x).norm()


def test_calibrating_again_decides_signs_again_and_keeps_frozen_modules():
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), weight=None, act=PACT(4), ends=4)
    model[1].eval()  # frozen by its user
    spequant.calibrate(model, [torch.rand(64, 4)], samples=64)
    assert not model[0].act_quantizer.signed
    spequant.calibrate(pickle.loads(pickle.dumps(model)), [torch.randn(64, 4)], samples=64)
    fresh = spequant.prepare(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)), weight=None, act=PACT(4), ends=4)
    fresh.load_state_dict(model.state_dict())
    for again in (model, fresh):
        spequant.calibrate(again, [torch.randn(64, 4)], samples=64)
        assert again[0].act_quantizer.signed and int(again[0].act_quantizer.levels) == 15
    assert model.training and model[0].training and not model[1].training


def test_two_prepared_networks_in_one_model():
    def network():
        return spequant.prepare(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), weight=SAWB(2), act=PACT(2), ends=2)

    model = nn.Sequential(network(), network())
    spequant.calibrate(model, [torch.randn(64, 4)], samples=64)
    assert len(act_quantizers(model)) == 4
    with spequant.precision(model, spequant.Fixed(8)):
        assert {int(q.levels) for q in act_quantizers(model).values()} == {255}
    with torch.no_grad():
        assert float(penalties(model)) == pytest.approx(sum(float(penalties(part)) for part in model))


def test_a_tensor_of_zeros_gets_a_range_that_can_be_trained():
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 4)), weight=None, act=PACT(2), ends=2)
    spequant.calibrate(model, [torch.zeros(64, 4)], samples=64)
    model(torch.ones(8, 4)).sum().backward()
    clip = model[0].act_quantizer.clip
    assert float(clip.detach()) == 1 and clip.grad.abs() > 0


def test_an_activation_without_a_sign_is_not_calibrated():
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 4)), weight=DoReFa(8), act=DoReFa(8), ends=8)
    with pytest.raises(RuntimeError, match="has no range yet"):
        model(torch.rand(8, 4))


def test_a_batch_is_counted_by_its_first_tensor():
    model = prepare(nn.Linear(4, 4), ends=2)
    x = torch.randn(64, 4)
    for batch, run in (
        ({"id": ["a", "b"], "number": 3, "scale": torch.tensor(2.0), "x": x}, lambda m, b: m(b["x"])),
        ((["a path"], x), lambda m, b: m(b[1])),
    ):
        spequant.calibrate(model, [batch], samples=64, run=run, reestimate=False)
    with pytest.raises(ValueError, match="batches hold dicts"):
        spequant.calibrate(model, [{"id": ["a"]}], samples=1, run=lambda m, b: None)


def test_samples_are_counted_in_nested_batches():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, pair):
            return self.fc(pair[0] + pair[1])

    model = spequant.prepare(Two(), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [((torch.rand(64, 4), torch.rand(64, 4)), torch.zeros(64))], samples=64)


def test_calibrated_in_inference_mode_a_network_can_be_trained():
    model = prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), ends=2)
    with torch.inference_mode():
        spequant.calibrate(model, [torch.randn(64, 4)], samples=64)
    model(torch.randn(8, 4)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


def test_a_single_batch_or_a_set_of_samples_is_refused():
    x = torch.randn(2048, 6)
    for wrong in (x, TensorDataset(x), {"x": x}):
        model = spequant.prepare(
            nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3)), weight=SAWB(4), act=PACT(4)
        )
        with pytest.raises(ValueError, match=r"batches is a \w+;.*e\.g\. \[x\]"):
            spequant.calibrate(model, wrong)
        with pytest.raises(ValueError, match=r"batches is a \w+;"):
            spequant.reestimate_batch_norm(model, wrong)
    with pytest.raises(ValueError, match="samples is -5; expected 1 or more"):
        spequant.calibrate(model, [x], samples=-5)


class Experts(nn.Module):
    """Each row goes to one of two layers, by the sign of its first number."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        out = torch.zeros(len(x), 4)
        up = x[:, 0] > 0
        out[up], out[~up] = self.one(x[up]), self.two(x[~up])
        return self.head(out)


def test_a_layer_may_get_empty_inputs_but_not_only_those():
    x = torch.randn(64, 4)
    up = x.clone()
    up[:, 0] = up[:, 0].abs()
    model = spequant.prepare(Experts(), weight=SAWB(8), act=PACT(8), residual=None)
    spequant.calibrate(model, [up, x[:0], x], samples=128)
    assert model(x).isfinite().all()
    model = spequant.prepare(Experts(), weight=SAWB(8), act=PACT(8), residual=None)
    with pytest.raises(RuntimeError, match="on no value: two"):
        spequant.calibrate(model, [up], samples=64)


def test_lists_of_images_are_counted_by_images():
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, images):
            return [self.conv(image.unsqueeze(0)).mean((2, 3)) for image in images]

    batches = [([torch.rand(3, 8, 8 + i) for i in range(16)], [{}] * 16)] * 2
    model = spequant.prepare(Detector(), weight=SAWB(8), act=PACT(8), residual=None)
    spequant.calibrate(model, batches, samples=32)
    with pytest.raises(ValueError, match=r"32 samples; .*samples=33"):
        spequant.calibrate(model, batches, samples=33)


FREEZES = {
    "eval": lambda norm: norm.eval(),
    "no gradient": lambda norm: norm.requires_grad_(False),
    "momentum": lambda norm: setattr(norm, "momentum", 0.0),
}


@pytest.mark.parametrize("how", FREEZES)
def test_a_frozen_batch_norm_keeps_its_statistics(how):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.BatchNorm1d(6))
    for norm in (net[1], net[4]):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    model = spequant.prepare(net, weight=SAWB(4), act=PACT(4))
    FREEZES[how](model[1])
    before = [b.clone() for b in (*model[1].buffers(), *model[4].buffers())]
    mode, momentum = model[1].training, model[1].momentum
    spequant.calibrate(model, [torch.randn(64, 4)], samples=64)
    after = [*model[1].buffers(), *model[4].buffers()]
    assert all(torch.equal(a, b) for a, b in zip(after[:3], before[:3], strict=True))
    assert not torch.equal(after[3], before[3]) and not torch.equal(after[4], before[4])
    assert model[1].training == mode and model[1].momentum == momentum and model[4].momentum == 0.1


def test_a_network_in_eval_mode_has_its_statistics_measured():
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), weight=SAWB(4), act=PACT(4)).eval()
    spequant.calibrate(model, [torch.randn(64, 4)], samples=64)
    assert model[1].running_mean.abs().sum() > 0 and not model.training and not model[1].training


def test_a_last_batch_of_one_sample_is_named_and_changes_nothing():
    model = spequant.prepare(nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6)), weight=SAWB(4), act=PACT(4))
    before = [b.clone() for b in model[1].buffers()]
    x = torch.randn(65, 4)
    with pytest.raises(ValueError, match=r"^batch 2 .*single sample"):
        spequant.calibrate(model, [x[:64], x[64:]], samples=65)
    assert all(torch.equal(a, b) for a, b in zip(model[1].buffers(), before, strict=True))
    spequant.calibrate(model, [x[:64], x[64:]], samples=65, reestimate=False)


def test_frozen_offsets_stay_frozen():
    def network(act):
        return spequant.prepare(nn.Sequential(nn.Linear(4, 4)), weight=None, act=act, ends=4)

    model, x = network(LSQPlus(4)), torch.randn(64, 4)
    model[0].act_quantizer.offset.requires_grad_(False)
    spequant.calibrate(model, [x], samples=64)
    quantizer = model[0].act_quantizer
    assert quantizer.signed and not quantizer.offset.requires_grad
    other = network(LSQPlus(4))
    other[0].act_quantizer.offset.requires_grad_(False)
    other.load_state_dict(model.state_dict())
    assert other[0].act_quantizer.signed and not other[0].act_quantizer.offset.requires_grad
    spequant.calibrate(other, [x.abs()], samples=64)
    spequant.calibrate(other, [x], samples=64)
    assert other[0].act_quantizer.signed and not other[0].act_quantizer.offset.requires_grad
    free = network(LSQPlus(4))
    for values in (x.abs(), x):  # an unsigned input has no trained offset, a signed one has
        spequant.calibrate(free, [values], samples=64)
    assert free[0].act_quantizer.offset.requires_grad


def ranges_of(model):
    return [
        p.detach().clone()
        for q in (*act_quantizers(model).values(), *weight_quantizers(model).values())
        for p in q.parameters()
    ]


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("place", ["weight of the first layer", "weight of the last layer", "activation"])
def test_values_that_are_not_finite_change_no_range(place, value):
    class Between(nn.Module):
        factor = 1.0

        def forward(self, x):
            return x * self.factor

    model = prepare(nn.Sequential(nn.Linear(4, 4), Between(), nn.Linear(4, 4)), weight=LSQ(2), act=LSQ(2), ends=2)
    spequant.calibrate(model, [torch.rand(64, 4)], samples=64)
    before = ranges_of(model)
    with torch.no_grad():
        if place == "activation":
            model[1].factor = value
        else:
            model[0 if "first" in place else 2].layer.weight[0, 0] = value
    name = 0 if "first" in place else 2
    with pytest.raises(ValueError, match=f"^{name}: its (weight|input) holds NaN or Inf"):
        spequant.calibrate(model, [torch.rand(64, 4) * 5], samples=64)
    assert all(torch.equal(a, b) for a, b in zip(before, ranges_of(model), strict=True))


@pytest.mark.parametrize("signed", [None, False])
def test_ranges_are_not_fitted_to_the_bits_of_a_precision_context(signed):
    model = prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), act=LSQ(2, signed=signed), ends=2)
    spequant.calibrate(model, [torch.rand(64, 4)], samples=64)
    before = ranges_of(model)
    with spequant.precision(model, spequant.Fixed(8)):
        with pytest.raises(RuntimeError, match=r"0: .* inside a precision context"):
            spequant.calibrate(model, [torch.rand(64, 4) * 3], samples=64)
        assert {int(q.levels) for q in act_quantizers(model).values()} == {256}
    assert all(torch.equal(a, b) for a, b in zip(before, ranges_of(model), strict=True))


@pytest.mark.parametrize("value", [0, True, 1.5, "64", None])
def test_a_number_of_samples_that_is_no_whole_number_is_refused(value):
    model = prepare(nn.Sequential(nn.Linear(4, 4)), ends=2)
    with pytest.raises(ValueError, match=f"^samples is {value!r}; expected 1"):
        spequant.calibrate(model, [torch.rand(64, 4)], samples=value)
