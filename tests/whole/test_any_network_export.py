"""Capability: networks of torchvision, timm and users, none marked for this library, as packed files and integer
programs. (As ONNX with float islands: test_any_network_mixed.py.)"""

from functools import partial

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import Twin, export_onnx, load_packed, lower, pack, quantize_biases
from spequant.deploy.operations import Add, Weighted
from spequant.layers import OUTPUT, QuantizedLayer, QuantizedProduct
from spequant.quantizers import LSQ, PACT, SAWB, MinMax
from spequant.quantizers.ranges import largest
from support.integer_networks import NEEDS_ONNXRUNTIME
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

    def __init__(self, kind="ScaledStdConv2d"):
        super().__init__()
        from timm.layers import std_conv

        scaled = getattr(std_conv, kind)
        self.a, self.norm, self.act = std_conv.StdConv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.b, self.c, self.head = scaled(8, 8, 3), scaled(8, 8, 3, stride=2), nn.Linear(8, 5)
        nn.init.uniform_(self.b.gain, 0.5, 2.0)

    def forward(self, x):
        x = self.act(self.norm(self.a(x)))
        return self.head(self.c((self.b(x) + x).relu()).relu().mean((2, 3)))


def residual_blocks():
    from support.additions import residual_network

    return residual_network()


def torchvision_resnet():
    from torchvision.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, [1, 1, 1, 1], num_classes=5)


def torchvision_mobilenet():
    from torchvision.models import mobilenet_v2

    return mobilenet_v2(width_mult=0.25, num_classes=5)


def timm_resnet():
    from timm.models.resnet import BasicBlock, ResNet

    return ResNet(BasicBlock, (2, 1, 1, 1), num_classes=5, channels=(8, 8, 16, 16), zero_init_last=False)


def efficientnet_lite():
    from timm.models import efficientnet

    return efficientnet._gen_efficientnet_lite("efficientnet_lite0", 0.25)


def bit():
    from timm.layers import GroupNormAct
    from timm.models.resnetv2 import ResNetV2

    groups = partial(GroupNormAct, num_groups=8)
    sizes = {"channels": (32, 64), "num_classes": 5, "stem_chs": 32}
    return ResNetV2([1, 1], stem_type="fixed", norm_layer=groups, **sizes)


def nfnet():
    from timm.models.nfnet import NfCfg, NormFreeNet

    settings = NfCfg(depths=(1, 1), channels=(16, 16), stem_type="3x3", stem_chs=8, group_size=8, act_layer="relu")
    return NormFreeNet(settings, num_classes=5)


def attending(name=None):
    """Of `support.attention`, which imports timm and torchvision: one of its networks, or its plain attention."""
    from support.attention import NETWORKS, Attending

    return Attending() if name is None else NETWORKS[name]()


CNNS = {
    "torchvision ResNet": torchvision_resnet,
    "residual blocks": residual_blocks,
    "torchvision MobileNetV2": torchvision_mobilenet,
    "timm ResNet": timm_resnet,
    "EfficientNet-Lite": efficientnet_lite,
    "standardised": Standardised,
}
OTHERS = {"BiT": bit, "NFNet": nfnet, **{n: partial(attending, n) for n in ("ViT", "torchvision Swin", "BEiT")}}
SLOW = ("torchvision ResNet", "torchvision MobileNetV2", "EfficientNet-Lite")


def tiered(names):
    """`names` of networks, the large ones marked as slow."""
    return [pytest.param(n, marks=pytest.mark.slow) if n in SLOW else n for n in names]


@pytest.mark.parametrize("name", tiered([*CNNS, *OTHERS]))
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
    model = prepared(attending(), x, products=6)
    pack(model, tmp_path / "a")
    loaded = load_packed(tmp_path / "a", attending())
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
    pack(prepared(residual_blocks(), x), tmp_path / "a")
    for key, value in (("1.bn2:output", [None]), ("1.bn2:output", [0, 0]), ("nobody:output", [0])):
        rewritten(tmp_path / "a", tmp_path / "hostile", put("slots", key, value))
        with pytest.raises(ValueError, match=r"(1\.bn2:output has|'nobody')"):
            load_packed(tmp_path / "hostile", residual_blocks())


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


@pytest.mark.parametrize("name", tiered(CNNS))
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
        from timm.layers import BatchNormAct2d

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


def test_what_has_no_integer_form_is_named():
    x = images(2, 3, 32, 32)
    with pytest.raises(ValueError, match=r"^stages\.0\.blocks\.0\.norm1.*group_norm"):
        lower(prepared(OTHERS["BiT"](), x), x[:1])


@pytest.mark.parametrize("options", [{}, {"products": 8}])
def test_attention_has_no_integer_form(options):
    x = images(8, 5, 8)
    with pytest.raises(ValueError, match=r"Attending cannot be traced|no integer form"):
        lower(prepared(attending(), x, **options), x[:1])


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize("name", tiered(["residual blocks", "standardised", "torchvision MobileNetV2"]))
def test_onnxruntime_answers_as_the_network(name, tmp_path):
    x = images(8, 3, 32, 32)
    # At the ends 7 bits: sums of two products of 8 bits do not fit the 16 bits of processors without VNNI.
    model = prepared(CNNS[name](), x, weight=LSQ(4), act=MinMax(8), ends=(7, 8))
    quantize_biases(model, x[:1])
    parity = export_onnx(model, tmp_path / "a.onnx", [x])
    assert parity.images == 8 and parity.equal >= 7
    assert (tmp_path / "a.onnx").is_file() and any(OUTPUT in m._modules for m in model.modules())
