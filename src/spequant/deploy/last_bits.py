"""A network with other last bits: how much of a difference is its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spequant.layers import QuantizedLayer


@contextmanager
def other_last_bits(model: nn.Module) -> Iterator[None]:
    """Inside, what quantized layers return is off by up to 2^-21 of itself, as it may be in another engine, whose float
    parts round otherwise. Where a value lies near the middle of two codes that is one code, and more a layer on: of a
    deep network every engine gives somewhat other logits, and so does the network itself."""
    generator = torch.Generator().manual_seed(0)

    def moved(layer: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        noise = torch.rand(out.shape, generator=generator).to(out.device, out.dtype)
        return out * (1 + (2 * noise - 1) * 2**-21)

    hooks = [m.register_forward_hook(moved) for m in model.modules() if isinstance(m, QuantizedLayer)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
