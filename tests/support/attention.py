"""Small networks with attention, of torch, torchvision and timm; how tests quantize them and read their gradients."""

from timm.models.beit import Beit
from timm.models.eva import Eva
from timm.models.swin_transformer import SwinTransformer as TimmSwin
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

import spequant
from spequant.quantizers import LSQ


def quantized(model, x, **options):
    model = spequant.prepare(model, **({"weight": LSQ(2), "act": LSQ(3), "ends": 2} | options))
    spequant.calibrate(model, [x], samples=len(x))
    return model


def gradients(model, output):
    model.zero_grad()
    output.square().sum().backward()
    return {n: p.grad for n, p in model.named_parameters()}


class Attending(nn.Module):
    def __init__(self, *, batch_first=True, **settings):
        super().__init__()
        self.stem = nn.Linear(8, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **settings)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        x = self.stem(x)
        return self.head(self.attention(x, x, x)[0].mean(1))


def swin(**options):
    sizes = {"embed_dim": 16, "depths": [2, 2], "num_heads": [2, 4], "window_size": [4, 4], "num_classes": 5}
    return SwinTransformer(patch_size=[4, 4], stochastic_depth_prob=0.0, **sizes, **options)


SCALE = {"head_init_scale": 1.0}


NETWORKS = {
    "torchvision Swin": swin,
    "torchvision Swin V2": lambda: swin(block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
    "BEiT": lambda: Beit(32, 8, num_classes=5, embed_dim=16, depth=2, num_heads=2, use_rel_pos_bias=True, **SCALE),
    "EVA": lambda: Eva(32, 8, num_classes=5, embed_dim=16, depth=2, num_heads=2, **SCALE),
    "timm Swin V2": lambda: SwinTransformerV2(32, 4, 3, 5, window_size=4, embed_dim=16, depths=(2,), num_heads=(2,)),
    "ViT": lambda: VisionTransformer(32, 8, num_classes=5, embed_dim=16, depth=2, num_heads=2),
    "timm Swin": lambda: TimmSwin(32, 4, 3, 5, window_size=4, embed_dim=16, depths=(2,), num_heads=(2,)),
}
