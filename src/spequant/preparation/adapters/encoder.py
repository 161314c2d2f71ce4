"""torch's `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer`, with their additions as marked modules."""

from typing import Any

from torch import Tensor, nn


class Addition(nn.Module):
    """branch + shortcut, with the mark by which `prepare` finds residual additions."""

    residual_addition = True

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch + shortcut


class _Marked:
    """What both kinds of layers share: a sequence of residual blocks, with the norm before the block or after it."""

    def _residual(self, x: Tensor, number: int, block: Any, *args: Any) -> Tensor:
        """Return the output of residual block `number`, from 1, whose branch is `block`."""
        layer: Any = self
        add, norm = getattr(layer, f"add{number}"), getattr(layer, f"norm{number}")
        if layer.norm_first:
            return add(block(norm(x), *args), x)
        return norm(add(block(x, *args), x))

    def restore(self) -> None:
        layer: Any = self
        for name in [n for n, m in layer.named_children() if type(m) is Addition]:
            delattr(layer, name)
        layer.__class__ = type(self).__bases__[1]  # torch's class


class EncoderLayer(_Marked, nn.TransformerEncoderLayer):
    """torch's encoder layer with its additions as `add1` and `add2`. Only `adapt` makes one."""

    def forward(  # the signature is torch's
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        x = self._residual(src, 1, self._sa_block, src_mask, src_key_padding_mask, is_causal)
        return self._residual(x, 2, self._ff_block)


class DecoderLayer(_Marked, nn.TransformerDecoderLayer):
    """torch's decoder layer with its additions as `add1`, `add2` and `add3`. Only `adapt` makes one."""

    def forward(  # the signature is torch's
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        x = self._residual(tgt, 1, self._sa_block, tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        memory_args = memory, memory_mask, memory_key_padding_mask, memory_is_causal
        x = self._residual(x, 2, self._mha_block, *memory_args)
        return self._residual(x, 3, self._ff_block)


def adapt(module: nn.Module) -> None:
    is_encoder = isinstance(module, nn.TransformerEncoderLayer)
    kind: Any = EncoderLayer if is_encoder else DecoderLayer
    additions = 2 if is_encoder else 3
    module.__class__ = kind
    for number in range(1, additions + 1):
        module.add_module(f"add{number}", Addition())
