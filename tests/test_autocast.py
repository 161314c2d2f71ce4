"""Functions that run without autocast, whatever the code around them runs in."""

import pytest
import torch

from spequant.autocast import without_autocast


@without_autocast
def product_dtype(x, *, fail=False):
    """The dtype of a product of `x` with itself."""
    if fail:
        raise RuntimeError("failed")
    return (x @ x).dtype


def test_autocast_is_off_inside_and_on_again_after():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert (x @ x).dtype == torch.bfloat16
        assert product_dtype(x) == torch.float32
        with pytest.raises(RuntimeError, match="failed"):
            product_dtype(x, fail=True)
        assert (x @ x).dtype == torch.bfloat16
    assert product_dtype(x) == torch.float32
