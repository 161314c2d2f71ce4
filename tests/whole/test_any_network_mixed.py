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


INTEGER = """
torchvision/mnasnet0_5 torchvision/mobilenet_v2 torchvision/regnet_y_400mf torchvision/resnet18 timm/dla46x_c
timm/convmixer_768_32 timm/regnetx_002 timm/resnetv2_18 timm/selecsls42 timm/legacy_xception timm/xception41p
timm/lcnetv2_small
""".split()  # noqa: SIM905


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
        lower(model.eval(), x[:1])
        assert name in INTEGER
    except ValueError:
        assert name not in INTEGER
    mixed = mixed_graph(model, x[:1])
    (out,) = run_in_parts(onnxruntime(mixed.graph.SerializeToString()), {"input": x.numpy()}, mixed.batch)
    assert out.shape == (2, 10) and mixed.islands
    linear = [
        m for m in model.modules() if isinstance(m, spequant.layers.QuantizedLayer) and type(m.layer) is nn.Linear
    ]
    assert len(mixed.integers) >= len(linear)
