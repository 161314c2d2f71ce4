"""The networks that coverage is measured on: one, small, of each family of torchvision and timm."""

import torch
from torch import nn

from spequant.models import make_network

TORCHVISION = (
    "alexnet",
    "convnext_tiny",
    "densenet121",
    "efficientnet_b0",
    "googlenet",
    "inception_v3",
    "maxvit_t",
    "mnasnet0_5",
    "mobilenet_v2",
    "mobilenet_v3_small",
    "regnet_y_400mf",
    "resnet18",
    "shufflenet_v2_x0_5",
    "squeezenet1_1",
    "swin_t",
    "swin_v2_t",
    "vgg11_bn",
    "vit_b_32",
)
TIMM = """
beit_base_patch16_224 halonet_h1 test_byobnet cait_xxs24_224 coat_tiny convit_tiny convmixer_768_32 test_convnext
cpubone_nano crossvit_tiny_240 csatv2 cs3darknet_focus_s cspnext_tiny davit_tiny deit_tiny_patch16_224 densenet121
dla46x_c dpn48b edgenext_xx_small efficientformer_l1 efficientformerv2_s0 test_efficientnet efficientvim_m1
efficientvit_b0 efficientvit_m0 vit_tiny_patch16_dinov3_qkvb eva02_tiny_patch14_224 fasternet_t0 fastvit_t8
focalnet_tiny_srf gcvit_xxtiny ghostnet_050 hardcorenas_b hgnetv2_b0 hiera_tiny_224 sam2_hiera_tiny hrnet_w18_small
iformer_t inception_next_atto inception_v3 inception_v4 lcnetv2_small levit_128s lowformer_b0 test_mambaout
test_coatnet poolformerv2_s12 gmixer_12_224 resmlp_12_224 mobilenetv3_small_050 mobilevit_xxs mobilevitv2_050
mvitv2_tiny nest_tiny
nextvit_small test_nfnet pit_ti_224 pvt_v2_b0 rdnet_tiny regnetx_002 repghostnet_050 repvit_m1 res2next50 resnest14d
test_resnet resnetv2_18 resnetv2_50x1_bit rexnet_100 selecsls42 legacy_seresnet18 sequencer2d_s shvit_s1 skresnet18
starnet_s050 swiftformer_xs swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224
tnt_s_legacy_patch16_224 tresnet_m twins_svt_small visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos
vitamin_small_224 volo_d1_224 ese_vovnet19b_slim_dw legacy_xception xception41p xcit_nano_12_p8_224
""".split()  # noqa: SIM905
QUICK = ("torchvision/squeezenet1_1", "timm/test_vit", "timm/test_nfnet")
"""In the quick suite."""
NAMES = (*(f"torchvision/{n}" for n in TORCHVISION), *(f"timm/{n}" for n in TIMM))
TOLD = "residual additions of"


def side(name: str) -> int:
    """Of the smallest images that the network takes among 128 and its own size."""
    if name.startswith("torchvision/"):
        return {"torchvision/inception_v3": 96, "torchvision/maxvit_t": 224}.get(name, 64)
    from timm.models import get_pretrained_cfg

    own = get_pretrained_cfg(name.removeprefix("timm/"))
    return own.input_size[-1] if own.fixed_input_size or name == "timm/halonet_h1" else min(128, own.input_size[-1])


def shaken(name: str) -> nn.Module:
    """The network, no scale at zero or next to it, as some are made: then nothing would depend on the layers. Run once:
    ConViT asks a layer's weight for its device until it has tables of its own."""
    torch.manual_seed(0)
    network = make_network(name, classes=10, size=side(name)).eval()
    with torch.no_grad():
        network(torch.zeros(1, 3, side(name), side(name)))
        for p in network.parameters():
            if p.dim() <= 1 or float(p.abs().max()) < 1e-3:
                p.add_(0.1 * torch.randn_like(p))
    return network
