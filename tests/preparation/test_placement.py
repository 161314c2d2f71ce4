"""`prepare` and `unprepare`: which layers, which quantizers, state, and errors."""

import copy
import pickle

import pytest
import torch
from safetensors.torch import load, save
from torch import nn

import spequant
from spequant.layers import QuantizedAdd, QuantizedLayer, act_quantizers, weight_quantizers
from spequant.models import resnet8
from spequant.quantizers import LSQ, PACT, SAWB, APoT, DoReFa


class MarkedAdd(nn.Module):
    residual_addition = True

    def forward(self, branch, shortcut):
        return branch + shortcut


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.a, self.b, self.shortcut = (nn.Conv2d(i, 4, 1) for i in (3, 4, 4, 4))
        self.join, self.head = MarkedAdd(), nn.Linear(4, 2)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(self.join(self.b(self.a(x).relu()), self.shortcut(x)).relu().mean((2, 3)))


def calibrated(model, x, **options):
    options.setdefault("weight", SAWB(2))
    options.setdefault("act", PACT(2))
    model = spequant.prepare(model, **options)
    spequant.calibrate(model, [x], samples=len(x))
    return model


def mlp():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2))


def test_marked_residual_additions():
    model = spequant.prepare(Residual(), weight=SAWB(2), act=PACT(2))
    assert isinstance(model.join, QuantizedAdd)
    assert {q.bits for q in (model.join.branch_quantizer, model.join.shortcut_quantizer)} == {8}
    assert isinstance(spequant.prepare(Residual(), weight=SAWB(2), act=PACT(2), residual=None).join, MarkedAdd)
    x = torch.randn(64, 3, 4, 4)
    spequant.calibrate(model, [x], samples=64)
    a, b = torch.randn(2, 4, 3, 3), torch.rand(2, 4, 3, 3)
    assert torch.equal(model.join(a, b), model.join.branch_quantizer(a) + model.join.shortcut_quantizer(b))


def test_tied_weights_share_a_quantizer_and_a_layer_used_twice_stays_one():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    prepared = spequant.prepare(model, weight=LSQ(2), act=PACT(2), ends=2)
    assert prepared[0].weight_quantizer is prepared[1].weight_quantizer is not prepared[2].weight_quantizer
    assert prepared[0].layer.weight is prepared[1].layer.weight
    shared = nn.Linear(4, 4)
    prepared = spequant.prepare(nn.Sequential(shared, nn.ReLU(), shared), weight=SAWB(2), act=PACT(2), ends=2)
    assert prepared[0] is prepared[2]


def test_prepare_leaves_its_model_unchanged_and_unprepare_returns_a_float_one():
    model = resnet8()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(64, 3, 8, 8)
    prepared = calibrated(model, x)
    assert [type(m) for m in model.modules()] == [type(m) for m in resnet8().modules()]
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    with torch.no_grad():
        prepared.linear.layer.weight.add_(1)
    plain = spequant.unprepare(prepared)
    assert [type(m) for m in plain.modules()] == [type(m) for m in model.modules()]
    assert torch.equal(plain.linear.weight, before["linear.weight"] + 1)
    resnet8().load_state_dict(plain.state_dict())
    spequant.prepare(plain, weight=SAWB(2), act=PACT(2))
    with pytest.raises(ValueError, match="not prepared"):
        spequant.unprepare(model)


def test_copies_pickles_and_moves():
    x = torch.randn(64, 3, 8, 8)
    model = calibrated(resnet8(), x).eval()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(x), model(x))
    half = copy.deepcopy(model).to(torch.bfloat16)
    assert half.conv1.layer.weight.dtype == torch.bfloat16 and half(x.bfloat16()).dtype == torch.bfloat16
    for q in act_quantizers(half).values():
        assert q.clip.dtype == q.levels.dtype == torch.float32


def test_state_loads_into_a_fresh_model_and_not_into_one_of_other_bits():
    x = torch.randn(64, 3, 4, 4)
    source = Residual()
    model = calibrated(source, x, act=PACT(2)).eval()
    assert model.a.act_quantizer is model.shortcut.act_quantizer  # they read one tensor
    saved = load(save({k: v.clone() for k, v in model.state_dict().items()}))
    fresh = spequant.prepare(Residual(), weight=SAWB(2), act=PACT(2)).eval()
    fresh.load_state_dict(saved)
    assert torch.equal(fresh(x), model(x)) and fresh.a.act_quantizer is fresh.shortcut.act_quantizer
    wrapped = nn.Sequential(spequant.prepare(Residual(), weight=SAWB(2), act=PACT(2))).eval()
    wrapped.load_state_dict({f"0.{k}": v for k, v in saved.items()})
    assert torch.equal(wrapped(x), model(x)) and wrapped[0].a.act_quantizer is wrapped[0].shortcut.act_quantizer
    for other in ({"act": PACT(4)}, {"weight": SAWB(4)}):
        options = {"weight": SAWB(2), "act": PACT(2)} | other
        with pytest.raises(ValueError, match=r"a\.\w+_quantizer: .* 2 bits, .* 4"):
            spequant.prepare(Residual(), **options).load_state_dict(saved)


def test_errors_name_what_is_wrong():
    prepared = spequant.prepare(mlp(), weight=SAWB(2), act=PACT(2))
    cases = [
        (prepared, {}, "prepared already"),
        (mlp(), {"skip": ["head*"]}, r"'head\*' matches no layer; layers that can be quantized: 0, 2, 4"),
        (mlp(), {"overrides": {"5": 4}}, "'5' matches no layer"),
        (mlp(), {"weight": None, "act": None}, "weight and act are both None"),
        (mlp(), {"skip": ["*"]}, "nothing to quantize"),
        (nn.Linear(3, 3), {"ends": None}, "leave every layer float"),
        (nn.ReLU(), {}, "no Linear, convolution or embedding"),
        (mlp(), {"weight": 2}, "weight is 2; expected a quantizer"),
        (mlp(), {"ends": 9}, "bits is 9"),
    ]
    for model, options, message in cases:
        with pytest.raises(ValueError, match=message):
            spequant.prepare(model, **({"weight": SAWB(2), "act": PACT(2)} | options))


@pytest.mark.parametrize("training", [True, False])
def test_running_before_calibration_names_the_layer(training):
    model = spequant.prepare(mlp(), weight=SAWB(2), act=PACT(2)).train(training)
    with pytest.raises(RuntimeError, match=r"PACT of 0 has no range yet: call spequant\.calibrate"):
        model(torch.randn(2, 4))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # torch's word on its older weight_norm
@pytest.mark.parametrize(
    "norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm, nn.utils.weight_norm]
)
def test_a_weight_computed_from_others_is_refused_by_name(norm):
    model = nn.Sequential(nn.Linear(4, 4), norm(nn.Linear(4, 4)), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="1: its weight is computed"):
        spequant.prepare(model, weight=SAWB(2), act=PACT(2))
    if norm is not nn.utils.weight_norm:  # torch cannot deep-copy a model with its older one
        assert type(spequant.prepare(model, weight=SAWB(2), act=PACT(2), skip=["1"])[0]) is QuantizedLayer


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_weight_without_a_shape_is_refused_by_name():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"1: .* no shape"):
        spequant.prepare(model, weight=SAWB(2), act=PACT(2))


def test_the_state_of_another_kind_of_quantizer_is_refused():
    def network(weight, **settings):
        model = spequant.prepare(
            nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), weight=weight, act=PACT(2), ends=2, **settings
        )
        spequant.calibrate(model, [torch.rand(64, 4)], samples=64)
        return model

    state = network(SAWB(2)).state_dict()
    with pytest.raises(ValueError, match=r"0\.weight_quantizer: .* DoReFa"):
        network(DoReFa(2)).load_state_dict(state)
    with pytest.raises(ValueError, match=r"ranges of shape \(\), the model of \(4, 1\)"):
        network(SAWB(2), per_channel=True).load_state_dict(state)


@pytest.mark.parametrize("options", [{}, {"per_channel": True, "residual": 8}])
def test_quantizers_are_on_the_device_of_the_network(options):
    """ "meta" stands for a device that this machine lacks."""
    for weight in (SAWB(2), LSQ(2), APoT(4)):
        model = spequant.prepare(resnet8().to("meta"), weight=weight, act=PACT(2), **options)
        assert {x.device.type for x in (*model.parameters(), *model.buffers())} == {"meta"}
        assert {q.levels.device.type for q in weight_quantizers(model).values()} == {"meta"}


@pytest.mark.parametrize("value", [0, 9, True, 2.5, "8"])
@pytest.mark.parametrize("argument", ["ends", "embeddings", "residual", "products"])
def test_bits_out_of_range_are_refused_also_where_the_network_has_no_such_tensor(argument, value):
    with pytest.raises(ValueError, match=f"^{argument}: bits is {value!r}"):
        spequant.prepare(mlp(), weight=SAWB(2), act=PACT(2), **{argument: value})


@pytest.mark.parametrize("value", [9, (2, 9), (0, 2)])
def test_bits_out_of_range_for_single_layers_are_refused_with_their_pattern(value):
    with pytest.raises(ValueError, match=r"^overrides\['2'\]: bits is [09]"):
        spequant.prepare(mlp(), weight=SAWB(2), act=PACT(2), overrides={"2": value})
    with pytest.raises(ValueError, match=r"^overrides is \['2'\]"):
        spequant.prepare(mlp(), weight=SAWB(2), act=PACT(2), overrides=["2"])


def test_a_state_of_other_bits_writes_nothing():
    x = torch.randn(64, 3, 4, 4)
    saved = calibrated(Residual(), x, act=PACT(2), ends=8).state_dict()
    model = calibrated(Residual(), x, act=PACT(2), ends=8, overrides={"b": 4})
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for place, state in (
        (model, saved),
        (nn.Sequential(model), {f"0.{name}": v for name, v in saved.items()}),
        (copy.deepcopy(model), saved),
    ):
        with pytest.raises(ValueError, match=r"b\.\w+_quantizer: .* 2 bits, .* 4"):
            place.load_state_dict(state)
        after = place.state_dict().values()
        assert all(torch.equal(a, b) for a, b in zip(before.values(), after, strict=True))


def halved(module, args):
    return (args[0] / 2,)


def test_what_a_hook_makes_of_an_input_is_quantized():
    network, x = mlp(), torch.rand(64, 4)
    network[2].register_forward_pre_hook(halved)
    network[2].register_forward_pre_hook(lambda module, args, kwargs: (args, kwargs), with_kwargs=True)
    model = calibrated(network, x, weight=None, act=PACT(2), ends=None).eval()
    read = []
    model[2].layer.register_forward_pre_hook(lambda module, args: read.append(args[0]))
    model(x)
    assert len(read[0].unique()) <= 4
    hidden = torch.relu(network[0](x))
    assert torch.equal(read[0], model[2].act_quantizer(hidden / 2))
    back = spequant.unprepare(model)
    assert torch.equal(back(x), network(x)) and halved in back[2]._forward_pre_hooks.values()


def test_attentions_that_share_a_joint_weight_are_refused_by_name():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.MultiheadAttention(4, 2), nn.MultiheadAttention(4, 2)

        def forward(self, x):
            for attend in (self.a, self.b):
                x = attend(x, x, x)[0]
            return x

    network = Twice()
    network.b.in_proj_weight = network.a.in_proj_weight
    with pytest.raises(ValueError, match=r"a\.in_proj_weight and b\.in_proj_weight"):
        spequant.prepare(network, weight=SAWB(2), act=PACT(2))
    network.b = network.a  # the same module twice stays one
    model = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
    assert model.a is model.b
