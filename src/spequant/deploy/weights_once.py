"""Weights that are quantized once while a network is exported, which runs it some twenty times and changes none."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import get_ident

import torch
from torch import Tensor, nn

from spequant.layers import weight_quantizers
from spequant.quantizers import Quantizer


@contextmanager
def weights_once(model: nn.Module) -> Iterator[None]:
    """Inside, a weight quantizer of `model` that reads the same tensor at the same width again gives what it gave. For
    what changes no weight and no range. Other threads quantize as ever."""
    results: dict[Quantizer, tuple[Tensor, Tensor, Tensor]] = {}
    thread = get_ident()

    def once(q: Quantizer, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or get_ident() != thread:
            return q.rounded(x)
        weight, levels, result = results.get(q, (None, None, x))
        if weight is not x or levels is not q.levels:
            result = q.rounded(x)
            results[q] = x, q.levels, result
        return result

    quantizers = [q for q in weight_quantizers(model).values() if q.watch is None]
    try:
        for q in quantizers:
            q.watch = once
        yield
    finally:
        for q in quantizers:
            q.watch = None
