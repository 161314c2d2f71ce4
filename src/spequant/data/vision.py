"""torchvision and timm, imported when they are first needed; and the global random numbers that they draw."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch

from spequant.extras import needs


def vision(module: str) -> ModuleType:
    """The module of that name. ModuleNotFoundError: the extra `vision` is not installed."""
    return needs(module, "vision")


@contextmanager
def seeded(*numbers: int) -> Iterator[None]:
    """Inside, the global generators of Python, numpy and torch (CPU) follow from `numbers`, each 0 or more; at the end
    they are as they were."""
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
