"""torchvision's Swin and Swin V2: window attention that calls its layers.

References:
    Liu et al. 2021 (arXiv 2103.14030) and 2022 (arXiv 2111.09883).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.models.swin_transformer import ShiftedWindowAttention, ShiftedWindowAttentionV2

from spequant.preparation.adapters.products import add_products, attend, remove_products

OTHER_REGION = -100.0
"""Added to scores between tokens that share a window only because of the cyclic shift, as in the paper's code."""


def adapt(module: Any) -> None:
    kind: Any = LayeredWindowsV2 if isinstance(module, ShiftedWindowAttentionV2) else LayeredWindows
    module.__class__ = kind
    add_products(module)


def _forward(self: Any, x: Tensor) -> Tensor:
    """Compute torchvision's attention; `x` and the result are (batch, height, width, channels)."""
    height, width = x.shape[1:3]
    rows, columns = self.window_size
    x = F.pad(x, (0, 0, 0, -width % columns, 0, -height % rows))
    padded = x.shape[1:3]
    shift = [
        0 if size <= window else s for size, window, s in zip(padded, self.window_size, self.shift_size, strict=True)
    ]
    x = torch.roll(x, (-shift[0], -shift[1]), (1, 2))
    tokens = _windows(x, self.window_size).flatten(0, 1)  # (batch x windows, tokens, channels)
    mask = self.get_relative_position_bias()
    if any(shift):
        regions = _region_mask(padded, self.window_size, shift, x.device)  # (windows, tokens, tokens)
        mask = (mask + regions.unsqueeze(1)).repeat(len(x), 1, 1, 1)
    out = F.dropout(self.proj(self.attention(tokens, mask)), self.dropout, self.training)
    grid = padded[0] // rows, padded[1] // columns
    out = out.unflatten(0, (-1, *grid)).unflatten(3, (rows, columns)).transpose(2, 3).flatten(1, 2).flatten(2, 3)
    return torch.roll(out, shift, (1, 2))[:, :height, :width].contiguous()


def _windows(x: Tensor, window: list[int]) -> Tensor:
    """Split (batch, height, width, channels) into (batch, windows, tokens per window, channels)."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))  # batch, rows, row, columns, column, channels
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _region_mask(size: Any, window: list[int], shift: list[int], device: torch.device) -> Tensor:
    """Return (windows, tokens, tokens): `OTHER_REGION` between tokens of different regions, else 0.

    Tokens are of one region if the image has them together in a window without the cyclic shift.
    """
    regions = []
    for length, span, moved in zip(size, window, shift, strict=True):
        place = torch.arange(length, device=device)
        # As in torchvision, the last window of an axis that is not shifted is a region, too; no window spans two.
        regions.append((place >= length - span).int() + (place >= length - moved).int())
    region = (3 * regions[0][:, None] + regions[1]).view(1, *size, 1)
    token_region = _windows(region, window)[0, :, :, 0]
    return (token_region.unsqueeze(1) != token_region.unsqueeze(2)) * OTHER_REGION


def _split(self: Any, qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Split (batch, tokens, 3 channels) into q, k and v of (batch, heads, tokens, width per head)."""
    q, k, v = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _dropout(self: Any) -> float:
    return self.attention_dropout if self.training else 0.0


class LayeredWindows(ShiftedWindowAttention):
    """Swin's attention that calls its layers `qkv` and `proj`. Only `adapt` makes one."""

    forward = _forward

    def attention(self, tokens: Tensor, mask: Tensor) -> Tensor:
        q, k, v = _split(self, self.qkv(tokens))
        return attend(self, q, k, v, mask=mask, dropout=_dropout(self)).transpose(1, 2).flatten(2)

    def restore(self) -> None:
        remove_products(self)
        self.__class__ = ShiftedWindowAttention  # type: ignore[assignment]


class LayeredWindowsV2(ShiftedWindowAttentionV2):
    """Swin V2's attention, by the cosine of queries and keys, that calls its layers `qkv` and `proj`.

    Only `adapt` makes one.
    """

    forward = _forward

    def attention(self, tokens: Tensor, mask: Tensor) -> Tensor:
        qkv = self.qkv(tokens)
        if self.qkv.bias is not None:  # in Swin V2, keys have no bias
            is_key = torch.zeros_like(self.qkv.bias).unflatten(0, (3, -1))
            is_key[1] = 1.0
            qkv = qkv - self.qkv.bias * is_key.flatten()
        q, k, v = _split(self, qkv)
        scale = self.logit_scale.clamp(max=math.log(100.0)).exp()
        q, k = F.normalize(q, dim=-1) * scale * q.shape[-1] ** 0.5, F.normalize(k, dim=-1)
        return attend(self, q, k, v, mask=mask, dropout=_dropout(self)).transpose(1, 2).flatten(2)

    def restore(self) -> None:
        remove_products(self)
        self.__class__ = ShiftedWindowAttentionV2  # type: ignore[assignment]
