"""Attention's two products as modules, which can be found and quantized; and attention made of them."""

import torch.nn.functional as F
from torch import Tensor, nn


class Product(nn.Module):
    """left @ right. The class attribute `attention_product = True` marks it: code that quantizes networks finds it by
    that attribute, so that any network can mark its own without importing this class."""

    attention_product = True

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


def add_products(module: nn.Module) -> None:
    """Give an attention module its two products, `scores` (q k) and `mix` (p v)."""
    module.scores, module.mix = Product(), Product()


def remove_products(module: nn.Module) -> None:
    del module.scores, module.mix


def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask) v by the products of `module`; while both are float, in one fused operation.

    q, k, v: (..., tokens, d); mask: added to the scores, or None; dropout: of the probabilities.
    """
    if type(module.scores) is Product and type(module.mix) is Product:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return module.mix(probabilities(module, q, k, mask=mask, dropout=dropout), v)  # type: ignore[operator]


def probabilities(module: nn.Module, q: Tensor, k: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """softmax(q k^T / sqrt(d) + mask), the softmax in fp32, the result in the dtype of `q`."""
    scores = module.scores(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))  # type: ignore[operator]
    if mask is not None:
        scores = scores + mask
    return F.dropout(scores.float().softmax(-1).to(q.dtype), dropout)
