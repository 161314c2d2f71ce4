"""A batch, a small float network, and a 2-bit copy of it."""

import pytest

from support.equations import quantized, small_batch, small_network


@pytest.fixture
def batch():
    return small_batch()


@pytest.fixture
def floating():
    return small_network().train()


@pytest.fixture
def model(floating, batch):
    return quantized(floating, batch, 2)
