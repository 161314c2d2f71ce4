"""torch's `nn.TransformerEncoderLayer` and `nn.TransformerDecoderLayer`, their additions as marked modules."""

from typing import Any

from torch import Tensor, nn


class Addition(nn.Module):
    """branch + shortcut, marked as `prepare` finds residual additions."""

    residual_addition = True

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return branch + shortcut


class _Marked:
    """What both kinds have: blocks behind one another, each normalised before it or behind its addition."""

    def _after(self, x: Tensor, number: int, block: Any, *args: Any) -> Tensor:
        own: Any = self
        add, norm = getattr(own, f"add{number}"), getattr(own, f"norm{number}")
        if own.norm_first:
            return add(block(norm(x), *args), x)
        return norm(add(block(x, *args), x))

    def restore(self) -> None:
        own: Any = self
        for name in [n for n, m in own.named_children() if type(m) is Addition]:
            delattr(own, name)
        own.__class__ = type(self).__bases__[1]  # torch's


class EncoderLayer(_Marked, nn.TransformerEncoderLayer):
    """The same layer by modules `add1` and `add2`. Made by `adapt` alone."""

    def forward(  # the signature is torch's
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        x = self._after(src, 1, self._sa_block, src_mask, src_key_padding_mask, is_causal)
        return self._after(x, 2, self._ff_block)


class DecoderLayer(_Marked, nn.TransformerDecoderLayer):
    """The same layer by modules `add1`, `add2` and `add3`. Made by `adapt` alone."""

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
        x = self._after(tgt, 1, self._sa_block, tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        of_memory = memory, memory_mask, memory_key_padding_mask, memory_is_causal
        x = self._after(x, 2, self._mha_block, *of_memory)
        return self._after(x, 3, self._ff_block)


def adapt(module: nn.Module) -> None:
    of_encoder = isinstance(module, nn.TransformerEncoderLayer)
    kind: Any = EncoderLayer if of_encoder else DecoderLayer
    additions = 2 if of_encoder else 3
    module.__class__ = kind
    for number in range(1, additions + 1):
        module.add_module(f"add{number}", Addition())
