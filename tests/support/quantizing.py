"""Values, gradients and ranges for single quantizers, and their comparison with literal twins."""

import numpy as np
import torch

BITS = range(1, 9)


def tensors(n=2000, scale=1.0):
    """x (double on fp32 values), its fp32 leaf, and a random output gradient."""
    x = (torch.randn(n) * scale).requires_grad_()
    return x.detach().double().numpy(), x, torch.randn(n)


def ready(q, clip=None):
    """The quantizer, calibrated, its range ending at `clip` where one is given."""
    if clip is not None:
        q.set_clip(torch.as_tensor(clip))
    q.calibrated = True
    return q


def fitted(q, values, rule):
    """The quantizer, its range chosen by `rule`."""
    q.fit(values, rule)
    return q


def close(tensor, array, atol=1e-5):
    np.testing.assert_allclose(tensor.detach().double().numpy(), array, rtol=1e-4, atol=atol)


def error(q, x):
    """Of the quantized values: squared, relative."""
    with torch.no_grad():
        return float((q(x) - x).square().mean() / x.square().mean())
