"""Literal twins of what adapted modules compute: attention on quantized operands, and standardised weights."""

import numpy as np


def on_grid(x, low, high, levels):
    """The nearest of `levels` equally spaced values from low to high."""
    step = (high - low) / (levels - 1)
    return np.clip(np.round(x / step), np.round(low / step), np.round(high / step)) * step


def attention(q, k, v, mask, grids):
    """softmax(Q(q / sqrt(d)) Q(k)^T + mask) -> p, then Q(p) Q(v), one head of one sample at a time.

    q, k, v: (batch, heads, tokens, d). mask: added, (batch, heads, queries, keys). grids: (low, high, levels) of the
    four operands, in that order.
    """
    out = np.zeros((*q.shape[:3], v.shape[3]))
    for sample in range(q.shape[0]):
        for head in range(q.shape[1]):
            left = on_grid(q[sample, head] / np.sqrt(q.shape[3]), *grids[0])
            scores = left @ on_grid(k[sample, head], *grids[1]).T + mask[sample, head]
            p = np.exp(scores - scores.max(1, keepdims=True))
            p = p / p.sum(1, keepdims=True)
            out[sample, head] = on_grid(p, *grids[2]) @ on_grid(v[sample, head], *grids[3])
    return out


def standardised(weight, eps, gain=None):
    """(w - mean) / sqrt(var + eps) of each output channel, times gain / sqrt(fan-in)."""
    made = np.zeros_like(weight)
    for i, channel in enumerate(weight):
        made[i] = (channel - channel.mean()) / np.sqrt(channel.var() + eps)
        if gain is not None:
            made[i] *= float(gain[i].item()) / np.sqrt(channel.size)
    return made
