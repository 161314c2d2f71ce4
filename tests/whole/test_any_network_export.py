"""Networks of torchvision, timm and users, none marked for this library: packed files and integer programs of them."""

from functools import partial

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, GroupNormAct
from timm.layers.std_conv import ScaledStdConv2d, ScaledStdConv2dSame, StdConv2d
from timm.models.nfnet import NfCfg, NormFreeNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

import spequant
from spequant.export import Twin, export_onnx, load_packed, lower, pack, quantize_biases
from spequant.export.program import Add, Weighted
from spequant.layers import OUTPUT, QuantizedLayer, QuantizedProduct
from spequant.quantizers import LSQ, PACT, SAWB, MinMax
from spequant.quantizers.ranges import largest
from support.additions import residual_network
from support.attention import NETWORKS, Attending
from support.packed_files import put, rewritten

IMAGES = (4, 3, 32, 32)


def images(*shape):
    return torch.randn(shape or IMAGES)


def prepared(network, x, **options):
    model = spequant.prepare(network, **({"weight": SAWB(2), "act": PACT(2)} | options))
    spequant.calibrate(model, [x], samples=len(x), rule=largest)
    return model.eval()


class Standardised(nn.Module):
    """Standardised convolutions of both kinds, a batch norm, an addition."""

    def __init__(self, kind=ScaledStdConv2d):
        super().__init__()
        self.a, self.norm, self.act = StdConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.b, self.c, self.head = kind(8, 8, 3), kind(8, 8, 3, stride=2), nn.Linear(8, 5)
        nn.init.uniform_(self.b.gain, 0.5, 2.0)

    def forward(self, x):
        x = self.act(self.norm(self.a(x)))
        return self.head(self.c((self.b(x) + x).relu()).relu().mean((2, 3)))


def nfnet():
    settings = NfCfg(depths=(1, 1), channels=(16, 16), stem_type="3x3", stem_chs=8, group_size=8, act_layer="relu")
    return NormFreeNet(settings, num_classes=5)


CNNS = {
    "torchvision ResNet": lambda: torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=5
    ),
    "residual blocks": residual_network,
    "torchvision MobileNetV2": lambda: torchvision.models.mobilenet_v2(width_mult=0.25, num_classes=5),
    "timm ResNet": lambda: timm.models.resnet.ResNet(
        timm.models.resnet.BasicBlock, (2, 1, 1, 1), num_classes=5, channels=(8, 8, 16, 16), zero_init_last=False
    ),
    "EfficientNet-Lite": lambda: timm.models.efficientnet._gen_efficientnet_lite("efficientnet_lite0", 0.25),
    "standardised": Standardised,
}
GROUPS = partial(GroupNormAct, num_groups=8)
OTHERS = {
    "BiT": lambda: ResNetV2(
        [1, 1], channels=(32, 64), num_classes=5, stem_chs=32, stem_type="fixed", norm_layer=GROUPS
    ),
    "NFNet": nfnet,
    "ViT": NETWORKS["ViT"],
    "torchvision Swin": NETWORKS["torchvision Swin"],
    "BEiT": NETWORKS["BEiT"],
}


@pytest.mark.parametrize("name", [*CNNS, *OTHERS])
def test_a_packed_network_gives_equal_logits(name, tmp_path):
    make, x = (CNNS | OTHERS)[name], images(2, 3, 32, 32)
    options = {"products": 8} if name in ("ViT", "torchvision Swin") else {}
    model = prepared(make(), x, **options)
    pack(model, tmp_path / "a")
    loaded = load_packed(tmp_path / "a", make())
    assert torch.equal(loaded(x), model(x))
    assert any(isinstance(m, QuantizedProduct) for m in loaded.modules()) == bool(options)
    with spequant.precision(model, spequant.Fixed(5)), spequant.precision(loaded, spequant.Fixed(5)):
        assert torch.equal(loaded(x), model(x))
    pack(loaded, tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_packed_attention_gives_equal_logits(tmp_path):
    x = images(8, 5, 8)
    model = prepared(Attending(), x, products=6)
    pack(model, tmp_path / "a")
    loaded = load_packed(tmp_path / "a", Attending())
    assert torch.equal(loaded(x), model(x)) and loaded.attention.q.act_quantizer is loaded.attention.v.act_quantizer
    plain = spequant.unprepare(loaded)
    weight = model.attention.v.weight_quantizer(model.attention.v.layer.weight)
    assert type(plain.attention) is nn.MultiheadAttention
    torch.testing.assert_close(plain.attention.in_proj_weight[16:], weight)


def test_weights_that_a_file_holds_standardised_are_not_standardised_again(tmp_path):
    x = images(4, 3, 8, 8)
    model = prepared(Standardised(), x, act=None)
    pack(model, tmp_path / "a")
    loaded = load_packed(tmp_path / "a", Standardised())
    torch.testing.assert_close(loaded(x), model(x))
    torch.testing.assert_close(spequant.unprepare(loaded)(x), model(x))


def test_a_hostile_file_without_a_quantizer_of_an_output_is_refused(tmp_path):
    x = images(8, 3, 12, 12)
    pack(prepared(residual_network(), x), tmp_path / "a")
    for key, value in (("1.bn2:output", [None]), ("1.bn2:output", [0, 0]), ("nobody:output", [0])):
        rewritten(tmp_path / "a", tmp_path / "hostile", put("slots", key, value))
        with pytest.raises(ValueError, match=r"has the quantizers|does not have"):
            load_packed(tmp_path / "hostile", residual_network())


# --- integer programs ----------------------------------------------------------------------------------------------


def far(program, model, x):
    """{layer: share of its input codes that are more than a step from those of the prepared network}."""
    values = Twin(program).everything(x)
    found: dict[str, float] = {}
    inputs: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        if isinstance(module, QuantizedLayer):
            module.register_forward_pre_hook(lambda m, args, n=name: inputs.update({n: m.act_quantizer(args[0])}))
    model(x)
    for op in program.ops:
        if isinstance(op, Weighted):
            codes = torch.round(inputs[op.name] / op.inputs[0].grid.step)
            found[op.name] = float(((codes - values[op.inputs[0]]).abs() > 1).float().mean())
    return found


@pytest.mark.parametrize("name", CNNS)
def test_the_twin_computes_the_codes_of_the_network(name):
    x = images()
    model = prepared(CNNS[name](), x, weight=LSQ(4), act=MinMax(8))
    quantize_biases(model, x[:1])
    program = lower(model, x[:1])
    with torch.no_grad():
        logits = model(x)
        twin = Twin(program)(x)
        assert (twin.argmax(1) == logits.argmax(1)).all()
        torch.testing.assert_close(twin, logits, rtol=0, atol=0.1 * float(logits.std()))
        codes = far(program, model, x)
    # A step more or less grows on the way through a random network, whose batch norm stretches what hardly varies.
    assert len(codes) >= 3 and max(codes.values()) < 0.2 and min(codes.values()) == 0, codes
    sums = [op for op in program.ops if isinstance(op, Add)]
    assert len(sums) >= 1 and all(i.grid is not None for op in sums for i in op.inputs)


def test_a_float_layer_with_standardised_weights_is_an_island_of_its_own_values():
    x = images(4, 3, 8, 8)
    model = prepared(Standardised(), x, weight=LSQ(4), act=MinMax(8), ends=None)
    program = lower(model, x[:1])
    assert "a: layer" in program.islands()
    torch.testing.assert_close(Twin(program)(x), model(x), rtol=0, atol=0.05)


class Activated(nn.Module):
    """timm's batch norm with its activation inside, as an addend too."""

    def __init__(self, act):
        super().__init__()
        self.a, self.b, self.head = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)
        self.first, self.second = BatchNormAct2d(8, act_layer=act), BatchNormAct2d(8, act_layer=act)

    def forward(self, x):
        x = self.first(self.a(x))
        return self.head(self.second(self.b(x)) + x).mean((2, 3))


@pytest.mark.parametrize(("act", "high"), [(nn.ReLU, float("inf")), (nn.ReLU6, 6.0), (nn.Identity, None)])
@pytest.mark.parametrize("residual", [8, None])
def test_the_activation_inside_a_batch_norm_is_kept(act, high, residual):
    network, x = Activated(act), images(8, 3, 8, 8)
    nn.init.constant_(network.first.bias, 4.0)
    nn.init.constant_(network.first.weight, 4.0)
    model = prepared(network, x, weight=LSQ(4), act=PACT(8), residual=residual)
    program = lower(model, x[:1])
    first = next(op for op in program.ops if op.name == "a")
    values = Twin(program).everything(x)[first].float() * (first.grid.step if first.grid else 1.0)
    assert (values.min() >= 0) == (high is not None) and (high is None or values.max() <= high + 0.1)
    torch.testing.assert_close(Twin(program)(x), model(x), rtol=0, atol=0.05)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (OTHERS["BiT"], r"^stem\.pad: ConstantPad2d has no integer form"),
        (lambda: Standardised(ScaledStdConv2dSame), r"^c: LayeredScaledStdConv2dSame has no integer form.*skip"),
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.GELU(), nn.Conv2d(4, 4, 1)), "^1: GELU has no integer form"),
    ],
)
def test_what_has_no_integer_form_is_named(network, message):
    x = images(2, 3, 32, 32)
    with pytest.raises(ValueError, match=message):
        lower(prepared(network(), x), x[:1])


@pytest.mark.parametrize("options", [{}, {"products": 8}])
def test_attention_has_no_integer_form(options):
    x = images(8, 5, 8)
    with pytest.raises(ValueError, match=r"no integer form|cannot be traced"):
        lower(prepared(Attending(), x, **options), x[:1])


@pytest.mark.parametrize("name", ["residual blocks", "standardised", "torchvision MobileNetV2"])
def test_onnxruntime_answers_as_the_network(name, tmp_path):
    pytest.importorskip("onnxruntime")
    x = images(8, 3, 32, 32)
    # At the ends 7 bits: sums of two products of 8 bits do not fit the 16 bits of processors without VNNI.
    model = prepared(CNNS[name](), x, weight=LSQ(4), act=MinMax(8), ends=(7, 8))
    quantize_biases(model, x[:1])
    parity = export_onnx(model, tmp_path / "a.onnx", [x])
    assert parity.images == 8 and parity.equal >= 7
    assert (tmp_path / "a.onnx").is_file() and any(OUTPUT in m._modules for m in model.modules())


def test_a_batch_norm_that_does_more_is_not_taken_for_a_plain_one():
    class Doubled(nn.BatchNorm2d):
        def forward(self, x):
            return 2 * super().forward(x)

    x = torch.randn(2, 3, 8, 8)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), Doubled(4), nn.ReLU(), nn.Conv2d(4, 2, 3)).eval()
    model = spequant.prepare(network, weight=SAWB(4), act=PACT(4), residual=None)
    spequant.calibrate(model, [x], samples=2)
    with pytest.raises(ValueError, match=r"batch_norm|cannot be traced"):
        lower(model.eval(), x[:1])


def test_a_network_of_any_depth_is_lowered():
    """More layers than Python's limit of calls within calls."""
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()) for _ in range(400)]
    x = torch.rand(2, 4, 2, 2)
    program = lower(prepared(nn.Sequential(*layers), x), x)
    assert sum(isinstance(op, Weighted) for op in program.ops) == 400


def test_what_the_output_does_not_depend_on_is_not_lowered():
    class Unread(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x):
            self.b(x)
            return self.c(self.a(x).relu())

    x = torch.randn(2, 3, 4, 4)
    assert [op.name for op in lower(prepared(Unread(), x), x).ops if isinstance(op, Weighted)] == ["a", "c"]
