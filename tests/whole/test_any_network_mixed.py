"""Capability: any network as ONNX with float islands, its linear layers and products on integers: transformers of
torch, torchvision and timm, and every network that coverage is measured on."""

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import export_mixed, lower, mixed_graph, read_onnx
from spequant.deploy.engines import onnxruntime, run_in_parts
from spequant.quantizers import LSQ, PACT, SAWB
from support.clipping import clips
from support.covered_networks import NAMES, shaken, side
from support.integer_networks import NEEDS_ONNXRUNTIME
from support.mixed_networks import NEEDS_ONNXSCRIPT, kinds, prepared

pytestmark = [NEEDS_ONNXRUNTIME, NEEDS_ONNXSCRIPT]


def ends() -> int:
    return 7 if clips() else 8


class Encoded(nn.Module):
    """A user's network: torch's encoder on patches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 8, stride=8)
        layer = nn.TransformerEncoderLayer(16, 2, 32, 0.0, activation="gelu", batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.encoder(self.patches(x).flatten(2).transpose(1, 2)).mean(1))


def attending(name):
    def made():
        from support.attention import NETWORKS

        return NETWORKS[name]()

    return made


WHOLE = {
    "encoder": Encoded,
    **{n: attending(n) for n in ("torchvision Swin", "torchvision Swin V2", "BEiT", "EVA")},
    **{n: attending(n) for n in ("timm Swin V2", "ViT", "timm Swin")},
}
QUICK = ("encoder",)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in WHOLE])
def test_whole_networks(name, tmp_path):
    torch.manual_seed(0)
    network, x = WHOLE[name]().eval(), torch.randn(64, 3, 32, 32)
    with pytest.raises(ValueError, match=r"form|cannot be traced|dimensions"):
        lower(prepared(network, x[:8]), x[:1])
    products = 8 if name in ("encoder", "ViT", "torchvision Swin", "timm Swin") else None
    model = prepared(network, x[:8], weight=LSQ(4), act=LSQ(8), products=products, residual=8, ends=ends())
    parity, mixed = export_mixed(model, tmp_path / "net.onnx", [x], about={"name": name})
    assert parity.images == 64 and parity.equal >= 62
    quantized = [n for n, m in model.named_modules() if isinstance(m, spequant.layers.QuantizedLayer)]
    linear = {n for n in quantized if isinstance(model.get_submodule(n).layer, nn.Linear)}
    assert linear <= set(mixed.integers) and kinds(mixed)["MatMulInteger"] == len(mixed.integers)
    assert (len(mixed.integers) > len(linear)) == (products is not None)
    assert any("layer_norm" in i for i in mixed.islands) and not any(
        "linear" in i and "cpb_mlp" not in i for i in mixed.islands
    )
    assert b"site-packages" not in (tmp_path / "net.onnx").read_bytes()
    _, head = read_onnx(tmp_path / "net.onnx")
    assert (head["kind"], head["islands"], head["about"]) == ("mixed", mixed.islands, {"name": name})


PROGRAM = """
torchvision/alexnet torchvision/densenet121 torchvision/efficientnet_b0 torchvision/googlenet
torchvision/inception_v3 torchvision/mnasnet0_5 torchvision/mobilenet_v2 torchvision/mobilenet_v3_small
torchvision/regnet_y_400mf torchvision/resnet18 torchvision/shufflenet_v2_x0_5 torchvision/squeezenet1_1
timm/convmixer_768_32 timm/cs3darknet_focus_s timm/cspnext_tiny timm/densenet121 timm/dla46x_c timm/dpn48b
timm/ese_vovnet19b_slim_dw timm/fasternet_t0 timm/fastvit_t8 timm/ghostnet_050 timm/hardcorenas_b timm/hgnetv2_b0
timm/hrnet_w18_small timm/inception_v3 timm/inception_v4 timm/lcnetv2_small timm/legacy_seresnet18
timm/legacy_xception timm/mobilenetv3_small_050 timm/regnetx_002 timm/repghostnet_050 timm/repvit_m1 timm/res2next50
timm/resnetv2_18 timm/rexnet_100 timm/selecsls42 timm/starnet_s050 timm/test_byobnet timm/test_efficientnet
timm/test_nfnet timm/test_resnet timm/xception41p
""".split()  # noqa: SIM905
"""Those that have an integer program without `between`, most with steps in float."""
FEW_IN_FLOAT = """
torchvision/alexnet torchvision/mnasnet0_5 torchvision/mobilenet_v2 torchvision/resnet18
torchvision/shufflenet_v2_x0_5 torchvision/squeezenet1_1 timm/dla46x_c timm/legacy_xception timm/regnetx_002
timm/selecsls42
""".split()  # noqa: SIM905
"""Those of them with two at most: the mean before the head, and what reads it."""


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("name", NAMES)
def test_every_network_of_the_table_of_coverage_is_exported(name):
    """Ties of networks that were never trained grow from layer to layer, so that answers are not compared."""
    x = torch.randn(2, 3, side(name), side(name))
    model = spequant.prepare(shaken(name), weight=SAWB(4), act=PACT(4), ends=ends())
    spequant.calibrate(model, [x], samples=2, reestimate=False)
    try:
        islands = lower(model.eval(), x[:1]).islands()
        assert name in PROGRAM and (len(islands) <= 2) == (name in FEW_IN_FLOAT)
    except ValueError:
        assert name not in PROGRAM
    mixed = mixed_graph(model, x[:1])
    (out,) = run_in_parts(onnxruntime(mixed.graph.SerializeToString()), {"input": x.numpy()}, mixed.batch)
    assert out.shape == (2, 10) and mixed.islands
    linear = [
        m for m in model.modules() if isinstance(m, spequant.layers.QuantizedLayer) and type(m.layer) is nn.Linear
    ]
    assert len(mixed.integers) >= len(linear)
