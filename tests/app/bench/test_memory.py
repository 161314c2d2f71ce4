"""Memory at the peak of a step, counted."""

import torch

from spequant.app.bench.memory import peak_bytes, peak_of


def test_memory_at_its_peak():
    assert peak_of([(3, -4), (1, 4), (2, 6), (4, 1)]) == 10
    x = torch.ones(2**20)

    def step():
        y = x + 1  # 4 MiB more
        z = y * 2  # and 4 more, at which point
        del y
        return (z + 1).sum()

    assert 8 * 2**20 <= peak_bytes(step, torch.device("cpu")) < 9 * 2**20
