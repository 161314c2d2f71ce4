"""Import of torchvision and timm on first use, and control of the global random generators that they use."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch

from spequant.extras import needs


def vision(module: str) -> ModuleType:
    """Import and return a module of the extra `vision`, e.g. "timm.data".

    Raises:
        ModuleNotFoundError: The extra `vision` is not installed.
    """
    return needs(module, "vision")


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Seed the global generators of Python, numpy and torch (CPU) inside the context, and restore them at its end.

    Args:
        numbers: The seed, whole numbers of 0 or more.
    """
    python, numpy = random.getstate(), np.random.get_state()
    seeds = np.random.SeedSequence(numbers).generate_state(3).tolist()
    with torch.random.fork_rng(devices=[]):
        random.seed(seeds[0])
        np.random.seed(seeds[1])
        torch.default_generator.manual_seed(seeds[2])
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
