"""Attention of Hugging Face's transformers, its two products as modules of their own.

transformers keeps a register of functions that compute attention; a network's configuration names the one in use. Here
is one more, made of the products that the attention module holds. Masks are the ones of its plain ("eager") form.
"""

from typing import Any

from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

from spequant.preparation.adapters.products import add_products, attend, remove_products

NAME = "spequant"
UNKNOWN = ("position_bias", "softcap", "s_aux", "head_mask")
"""Arguments that change what is computed, and are not known here."""


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
    """(batch, heads, tokens, d) each -> (batch, tokens, heads, d), by `module.scores` and `module.mix`. attention_mask:
    added to the scores; keys and values of fewer heads are repeated."""
    given = [name for name in UNKNOWN if others.get(name) is not None]
    if given:
        raise ValueError(
            f"{type(module).__name__} gives its attention {', '.join(given)}, which is not known here: prepare with "
            "products=None, which leaves its products float"
        )
    groups = query.shape[1] // key.shape[1]
    if groups > 1:
        key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    width = query.shape[-1] ** -0.5
    query = query if scaling is None or scaling == width else query * (scaling / width)
    return attend(module, query, key, value, mask=attention_mask, dropout=dropout).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)


def adapt(module: Any) -> None:
    """The first of the modules that share a configuration knows what it said before."""
    module.attention_before = module.config._attn_implementation
    module.config._attn_implementation = NAME
    add_products(module)


def restore(module: Any) -> None:
    remove_products(module)
    if module.attention_before != NAME:
        module.config._attn_implementation = module.attention_before
    del module.attention_before
