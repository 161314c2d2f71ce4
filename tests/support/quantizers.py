"""Tensors in double and fp32, quantizers with a range, and comparisons with a literal twin."""

import numpy as np
import torch


def tensors(n=2000, scale=1.0):
    """x (double on fp32 values), its fp32 leaf, and a random output gradient."""
    x = (torch.randn(n) * scale).requires_grad_()
    return x.detach().double().numpy(), x, torch.randn(n)


def ready(q, clip=None):
    if clip is not None:
        q.set_clip(torch.as_tensor(clip))
    q.calibrated = True
    return q


def close(tensor, array, atol=1e-5):
    np.testing.assert_allclose(tensor.detach().double().numpy(), array, rtol=1e-4, atol=atol)
