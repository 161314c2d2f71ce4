"""Attention of Hugging Face's transformers, with its two products as modules.

transformers has a register of functions that compute attention, and a network's configuration names the one in use.
This file registers one more, which calls the products of the attention module. Masks are those of the plain form,
"eager".
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from spequant.preparation.adapters.products import add_products, attend, remove_products

ATTENTION_NAME = "spequant"
UNSUPPORTED = ("position_bias", "softcap", "s_aux", "head_mask")
"""Arguments that change the result and that `attention` does not support."""


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Compute attention with `module.scores` and `module.mix`; the signature is that of transformers' register.

    Args:
        module: The attention module, adapted.
        query: (batch, heads, tokens, d).
        key: (batch, heads or fewer, tokens, d); fewer heads are repeated.
        value: As `key`.
        attention_mask: Added to the scores, or None.
        dropout: Probability that a probability is set to 0.
        scaling: Factor of the scores; None: 1 / sqrt(d).
        others: Further arguments of transformers; those in `UNSUPPORTED` have to be None.

    Returns:
        ((batch, tokens, heads, d), None), without probabilities.

    Raises:
        ValueError: One of `UNSUPPORTED` is not None.
    """
    unsupported = [name for name in UNSUPPORTED if others.get(name) is not None]
    if unsupported:
        raise ValueError(
            f"{type(module).__name__} gives its attention {', '.join(unsupported)}, which is not supported: prepare "
            "with products=None, which leaves its products float"
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    default = query.shape[-1] ** -0.5  # the factor in `attend`
    query = query if scaling is None or scaling == default else query * (scaling / default)
    return attend(module, query, key, value, mask=attention_mask, dropout=dropout).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION_NAME, attention)
AttentionMaskInterface.register(ATTENTION_NAME, eager_mask)


def adapt(module: Any) -> None:
    """Let `module` compute attention by this file.

    Modules may share a configuration: then only the first of them stores the name that it had before.
    """
    module.attention_before = module.config._attn_implementation
    module.config._attn_implementation = ATTENTION_NAME
    add_products(module)


def restore(module: Any) -> None:
    remove_products(module)
    if module.attention_before != ATTENTION_NAME:
        module.config._attn_implementation = module.attention_before
    del module.attention_before
