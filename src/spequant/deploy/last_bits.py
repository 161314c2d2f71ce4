"""A network with other last bits: how much of a difference is its own."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from spequant.calibration.batches import answer
from spequant.deploy.outputs import outputs_by_name
from spequant.layers import Wrapper

Again = Callable[[Tensor], Iterator[Mapping[str, Tensor]]]
"""From numbers of samples to what a network gives for these, by output, several times."""
DRAWS = 8
"""How often the network is asked again what it answers to a sample, each time with other last bits."""


@contextmanager
def other_last_bits(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Inside, what quantized layers, additions and products return is off by up to 2^-21 of itself, as it may be in
    another engine, whose float parts round otherwise. Where a value lies near the middle of two codes that is one code,
    and more a layer on: of a deep network every engine gives somewhat other logits, and so does the network itself.
    seed: of these."""
    generator = torch.Generator().manual_seed(seed)

    def moved(layer: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        noise = torch.rand(out.shape, generator=generator).to(out.device, out.dtype)
        return out * (1 + (2 * noise - 1) * 2**-21)

    hooks = [m.register_forward_hook(moved) for m in model.modules() if isinstance(m, Wrapper)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def asked_again(model: nn.Module, x: Any, inputs: tuple[str, ...] = ("input",)) -> Again:
    """What `model` gives for samples of `x`, a tensor or inputs by name, with other last bits, `DRAWS` times. inputs:
    as of `outputs_by_name`."""

    def again(rows: Tensor) -> Iterator[dict[str, Tensor]]:
        chosen = {n: v[rows] for n, v in x.items()} if isinstance(x, Mapping) else x[rows]
        for seed in range(1, DRAWS + 1):
            with other_last_bits(model, seed):
                yield outputs_by_name(answer(model, chosen), inputs)

    return again
