"""torch's `nn.MultiheadAttention`, with its projections as separate layers."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from spequant.preparation.adapters.products import add_products, attend, probabilities, remove_products

PROJECTIONS = ("q", "k", "v")


def adapt(module: nn.MultiheadAttention) -> None:
    """Adapt `module`, unless it has extra keys (bias_k, bias_v, add_zero_attn), which are refused when it runs."""
    if module.bias_k is not None or module.bias_v is not None or module.add_zero_attn:
        return
    module.__class__ = LayeredAttention
    module.split()  # type: ignore[attr-defined]


class LayeredAttention(nn.MultiheadAttention):
    """The same attention with layers `q`, `k`, `v` and `out_proj`. Only `adapt` makes one."""

    q: nn.Module
    k: nn.Module
    v: nn.Module
    mix: nn.Module
    makes_first = "out_proj"  # the layer that returns the first of the two results, for the tracer

    def reads(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Return {name of a projection: the argument that it reads} for a call with these arguments."""
        named = (kwargs[name] for name in ("query", "key", "value") if name in kwargs)
        return dict(zip(PROJECTIONS, (*args[:3], *named), strict=True))

    def split(self) -> None:
        """Replace the joint or separate parameters by three linear layers."""
        parameters: dict[str, Any] = self._parameters
        joint, bias = parameters.pop("in_proj_weight", None), parameters.pop("in_proj_bias", None)
        self.was_joint = joint is not None
        for i, name in enumerate(PROJECTIONS):
            weight = joint.chunk(3)[i] if joint is not None else parameters.pop(f"{name}_proj_weight")
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
            layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=weight.requires_grad)
            if bias is not None:
                layer.bias = nn.Parameter(bias.detach().chunk(3)[i].clone(), requires_grad=bias.requires_grad)
            self.add_module(name, layer)
        for name in ("in_proj_weight", "in_proj_bias", *(f"{n}_proj_weight" for n in PROJECTIONS)):
            self.register_parameter(name, None)
        self._qkv_same_embed_dim = False  # so that torch's encoder layer does not take its fast path
        add_products(self)

    def restore(self) -> None:
        layers: list[Any] = [self._modules.pop(name) for name in PROJECTIONS]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        if self.was_joint:
            self.in_proj_weight = _joined(weights)
        else:
            self.q_proj_weight, self.k_proj_weight, self.v_proj_weight = weights
        if biases[0] is not None:
            self.in_proj_bias = _joined(biases)
        self._qkv_same_embed_dim = self.was_joint
        del self.was_joint
        remove_products(self)
        self.__class__ = nn.MultiheadAttention  # type: ignore[assignment]

    def forward(  # the signature is torch's
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Compute torch's attention.

        Shape:
            query, key, value: (batch, tokens, width) if `batch_first`, else (tokens, batch, width); or
            (tokens, width). Masks are bool, True where a key is left out, or are added to the scores.
        """
        if is_causal and attn_mask is None:
            raise ValueError(
                "is_causal is True and attn_mask None; expected the mask: is_causal is only a hint about it"
            )
        x, keys, values = self._batched(query), self._batched(key), self._batched(value)
        keys = x if key is query else keys  # the same object, not another view, so that it is quantized once
        values = keys if value is key else values
        q, k, v = self._heads(self.q(x)), self._heads(self.k(keys)), self._heads(self.v(values))
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights:
            weights = probabilities(self, q, k, mask=mask, dropout=dropout)
            out = self.mix(weights, v)
        else:
            out = attend(self, q, k, v, mask=mask, dropout=dropout)
        out = self.out_proj(out.transpose(1, 2).flatten(2))
        if weights is not None and average_attn_weights:
            weights = weights.mean(1)
        if query.dim() == 2:
            return out.squeeze(0), weights if weights is None else weights.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), weights

    def _batched(self, x: Tensor) -> Tensor:
        """Return `x` as (batch, tokens, width)."""
        if x.dim() == 2:
            return x.unsqueeze(0)
        return x if self.batch_first else x.transpose(0, 1)

    def _heads(self, x: Tensor) -> Tensor:
        """Split (batch, tokens, width) into (batch, heads, tokens, width per head)."""
        return x.unflatten(-1, (self.num_heads, self.head_dim)).transpose(1, 2)

    def _mask(self, attn_mask: Tensor | None, padding: Tensor | None, q: Tensor) -> Tensor | None:
        """Combine both masks into one that is added to scores of shape (batch, heads, queries, keys)."""
        parts = []
        if attn_mask is not None:
            attn_mask = _additive(attn_mask, q)
            parts.append(attn_mask.unflatten(0, (-1, self.num_heads)) if attn_mask.dim() == 3 else attn_mask)
        if padding is not None:
            parts.append(_additive(padding.reshape(len(q), 1, 1, -1), q))
        return sum(parts[1:], parts[0]) if parts else None


def _joined(parts: list[nn.Parameter]) -> nn.Parameter:
    return nn.Parameter(torch.cat([p.detach() for p in parts]), requires_grad=any(p.requires_grad for p in parts))


def _additive(mask: Tensor, like: Tensor) -> Tensor:
    """Return the mask that is added to scores: True, where torch leaves a key out, becomes -inf."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, float("-inf"))
