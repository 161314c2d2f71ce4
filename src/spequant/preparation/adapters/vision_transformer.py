"""timm's plain attention (ViT, DeiT and others) and of its Swin (windows), with products as modules."""

from typing import Any

from timm.layers.attention import Attention
from timm.models.swin_transformer import WindowAttention
from torch import Tensor

from spequant.preparation.adapters.products import add_products, attend, remove_products


def adapt(module: Any) -> None:
    kind: Any = VisibleAttention if type(module) is Attention else VisibleWindows
    module.__class__ = kind
    add_products(module)


def _split(self: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Project (batch, tokens, channels) to q, k and v of (batch, heads, tokens, width per head)."""
    q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return q, k, v


def _dropout(self: Any) -> float:
    return self.attn_drop.p if self.training else 0.0


class VisibleAttention(Attention):
    """timm's attention with its products as `scores` and `mix`. Only `adapt` makes one."""

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        if is_causal:
            raise ValueError("is_causal is True; expected False: give attn_mask, or prepare with products=None")
        gate = None if self.gate is None else self.gate(x).sigmoid()
        q, k, v = _split(self, x)
        if attn_mask is not None and not attn_mask.is_floating_point():
            attn_mask = attn_mask.to(q.dtype).log()  # True becomes 0, False -inf
        out = attend(self, self.q_norm(q), self.k_norm(k), v, mask=attn_mask, dropout=_dropout(self))
        out = self.norm(out.transpose(1, 2).flatten(2))
        return self.proj_drop(self.proj(out if gate is None else out * gate))

    def restore(self) -> None:
        remove_products(self)
        self.__class__ = Attention  # type: ignore[assignment]


class VisibleWindows(WindowAttention):
    """The attention of timm's Swin with its products as `scores` and `mix`. Only `adapt` makes one."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = _split(self, x)
        bias = self._get_rel_pos_bias()
        if mask is not None:  # (windows per image, tokens, tokens)
            bias = (bias + mask.unsqueeze(1)).repeat(len(x) // len(mask), 1, 1, 1)
        out = attend(self, q, k, v, mask=bias, dropout=_dropout(self))
        return self.proj_drop(self.proj(out.transpose(1, 2).flatten(2)))

    def restore(self) -> None:
        remove_products(self)
        self.__class__ = WindowAttention  # type: ignore[assignment]
