"""Attention's two products as modules, so that they can be found and quantized, and attention computed by them."""

import torch.nn.functional as F
from torch import Tensor, nn


class Product(nn.Module):
    """left @ right, marked by the class attribute `attention_product = True`.

    `prepare` finds products by that attribute, so that a network can mark its products without importing this class.
    """

    attention_product = True

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left @ right


def add_products(module: nn.Module) -> None:
    """Add the two products to an attention module: `scores` (q k) and `mix` (p v)."""
    module.scores, module.mix = Product(), Product()


def remove_products(module: nn.Module) -> None:
    """Undo `add_products`."""
    del module.scores, module.mix


def attend(module: nn.Module, q: Tensor, k: Tensor, v: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + mask) v with the products of `module`, or fused while both are float.

    Args:
        module: An attention module with the products `scores` and `mix`.
        q: Queries, (..., tokens, d).
        k: Keys, (..., tokens, d).
        v: Values, (..., tokens, d).
        mask: Added to the scores, or None.
        dropout: Probability that a probability is set to 0, 0 to 1.

    Returns:
        (..., tokens, d).
    """
    if type(module.scores) is Product and type(module.mix) is Product:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
    return module.mix(probabilities(module, q, k, mask=mask, dropout=dropout), v)  # type: ignore[operator]


def probabilities(module: nn.Module, q: Tensor, k: Tensor, *, mask: Tensor | None, dropout: float) -> Tensor:
    """Compute softmax(q k^T / sqrt(d) + mask): the softmax in fp32, the result in the dtype of `q`; see `attend`."""
    scores = module.scores(q * q.shape[-1] ** -0.5, k.transpose(-2, -1))  # type: ignore[operator]
    if mask is not None:
        scores = scores + mask
    return F.dropout(scores.float().softmax(-1).to(q.dtype), dropout)
