"""Literal numpy twins of the quantizers: value and hand-written gradient, float64, one formula of the paper each."""

import itertools

import numpy as np


def pact(x, grad, a, bits, signed=False):
    """(y, dL/dx, dL/da)."""
    low, steps = (-a, 2**bits - 2) if signed else (0.0, 2**bits - 1)
    clipped = np.clip(x, low, a)
    y = np.round((clipped - low) * steps / (a - low)) * (a - low) / steps + low
    inside = (x >= low) & (x <= a)
    to_a = (x >= a).astype(float) - ((x <= low).astype(float) if signed else 0.0)
    return y, grad * inside, (grad * to_a).sum()


def sawb_clip(w, c1, c2, levels):
    """a, the published one, or max|w| where that is less, or where a cuts off more than rounding up to max|w| loses."""
    a, top = c1 * np.sqrt((w**2).mean()) + c2 * np.abs(w).mean(), np.abs(w).max()
    cut_off = (np.maximum(np.abs(w) - a, 0) ** 2).mean()
    return a if 0 < a < top and cut_off <= (2 * top / (levels - 1)) ** 2 / 12 else top


def sawb(w, grad, a, levels, clip_gradient):
    """(w_q, dL/dw)."""
    u = np.clip(w / a, -1, 1) / 2 + 0.5
    r = np.round(u * (levels - 1)) / (levels - 1)
    return (2 * r - 1) * a, grad * (np.abs(w) <= a) if clip_gradient else grad


def statsq(w, grad, bits):
    """(w_q, dL/dw). The ends are clipped a little inside: -1 would be a tie, which at one bit goes to a third level."""
    s, n = 2 * np.abs(w).mean(), 2 ** (bits - 1)
    return s * (np.round(np.clip(w / s, -1 + 1e-9, 1 - 1e-9) * n - 0.5) + 0.5) / n, grad


def lsq(v, grad, s, qn, qp, elements):
    """(v_hat, dL/dv, dL/ds), the gradient of the step scaled by 1 / sqrt(elements Qp)."""
    ratio = v / s
    rounded = np.round(np.clip(ratio, -qn, qp)) if qn != 0.5 else np.where(ratio > 0, 0.5, -0.5)
    to_s = np.where(ratio <= -qn, -qn, np.where(ratio >= qp, qp, rounded - ratio))
    inside = (ratio >= -qn) & (ratio <= qp)
    return s * rounded, grad * inside, (grad * to_s).sum() / np.sqrt(elements * max(qp, 1.0))


def on_power(step):
    """The power of two whose exponent is nearest to that of `step`."""
    return 2.0 ** np.round(np.log2(step))


def power_of_two_lsq(v, grad, s, qn, qp, elements):
    """What `lsq` gives for the nearest power of two S; d log2 S = d log2 s, so that dL/ds = dL/dS S / s."""
    y, to_v, to_step = lsq(v, grad, on_power(s), qn, qp, elements)
    return y, to_v, to_step * on_power(s) / s


def power_of_two_lsq_plus(x, grad, s, beta, p, elements):
    """What `lsq_plus` gives for S and the zero point that it gives `s`; the gradient of beta times S / s, too, since
    low = -z S = (low of the step s) S / s."""
    ratio = on_power(s) / s
    y, to_x, to_s, to_beta = lsq_plus(x, grad, s * ratio, beta * ratio, p, elements)
    return y, to_x, to_s * ratio, to_beta * ratio


def power_of_two_pact(x, grad, a, bits, signed=False):
    """What `pact` gives for the clip A whose step is the nearest power of two; dL/da = dL/dA A / a."""
    steps = 2**bits - 2 if signed else 2**bits - 1
    width = 2 * a if signed else a
    ratio = on_power(width / steps) * steps / width
    y, to_x, to_a = pact(x, grad, a * ratio, bits, signed)
    return y, to_x, to_a * ratio


def lsq_plus(x, grad, s, beta, p, elements):
    """(x_hat, dL/dx, dL/ds, dL/dbeta): x_hat = s round(clip((x - low) / s, 0, p)) + low, where low = beta rounded to a
    multiple of `s` from -p s to 0; both gradients scaled by 1 / sqrt(elements p)."""
    z = np.round(np.clip(-beta / s, 0, p))
    v = x / s + z
    code = np.clip(np.round(x / s) + z, 0, p)
    inside = (v >= 0) & (v <= p)
    to_s = np.where(v <= 0, 0.0, np.where(v >= p, p, np.round(x / s) - x / s))
    to_beta = ((v <= 0) | (v >= p)).astype(float)
    g = 1 / np.sqrt(elements * p)
    return s * (code - z), grad * inside, (grad * to_s).sum() * g, (grad * to_beta).sum() * g


def dorefa_weight(w, bits):
    """w_q."""
    n = 2**bits - 1
    t = np.tanh(w)
    return 2 * np.round((t / (2 * np.abs(t).max()) + 0.5) * n) / n - 1


def dorefa_act(x, grad, bits):
    """(a_q, dL/da)."""
    n = 2**bits - 1
    return np.round(np.clip(x, 0, 1) * n) / n, grad * ((x >= 0) & (x <= 1))


def least_squares_error(w, bits, zero=True):
    """Mean squared error of the best of 3000 steps, on 2^n - 1 levels (1 bit: +-mean|w|); `zero` False: 2^n up to
    n = 4, half-way between."""
    if bits == 1:
        return ((np.abs(w) - np.abs(w).mean()) ** 2).mean()
    even = not zero and bits <= 4
    half = (2**bits - 1) / 2 if even else (2**bits - 2) / 2
    shift = 0.5 if even else 0.0
    codes = lambda d: np.minimum(np.round(np.abs(w) / d - shift) + shift, half)  # noqa: E731
    steps = np.linspace(1e-3, 1, 3000) * np.abs(w).max() / half
    return min(((w - d * np.sign(w) * codes(d)) ** 2).mean() for d in steps)


def on_uniform(w, step, half):
    """w on the multiples of `step` up to `half` steps, or half-way between them where `half` is of that form."""
    shift = half % 1
    codes = np.round(w / step - shift) + shift
    return step * np.clip(codes, -half, half)


def least_error(rows, low, high, clips=600):
    """Of each row the L2 error on the best of many grids: step times the codes `low` .. `high`, whole numbers or halves
    of odd ones. Tried are steps at which the largest value takes each code, `clips` others evenly spaced up to twice
    it and as many in equal ratios, each as it is and as least squares fits it to the codes that it gives."""
    rows, whole = np.abs(rows) if low == -high else rows, float(high).is_integer()
    top, last = np.abs(rows).max(1, keepdims=True), max(-low, high)
    sizes = np.concatenate([np.linspace(2 / clips, 2, clips), np.geomspace(1e-4, 2, clips)])
    sizes = np.concatenate([sizes, last / np.arange(last, 0, -0.5)])
    best = np.full(len(rows), np.inf)
    for size in np.array_split(sizes, 1 + rows.size * len(sizes) // 2**20):
        step = np.where(top > 0, top, 1.0) * size[:, None, None] / last
        codes = lambda d: np.clip(np.round(rows / d) if whole else np.floor(rows / d) + 0.5, low, high)  # noqa: E731
        z = codes(step)
        energy = (z**2).sum(2, keepdims=True)
        fitted = (rows * z).sum(2, keepdims=True) / np.where(energy > 0, energy, 1.0)
        for d in (step, np.where(fitted > 0, fitted, step)):
            best = np.minimum(best, np.sqrt(((rows - d * codes(d)) ** 2).sum(2)).min(0))
    return best


def symmetric(x, clip, bits):
    """x on 2^b - 1 levels over [-clip, clip]."""
    half = 2 ** (bits - 1) - 1
    return np.round(np.clip(x, -clip, clip) * half / clip) * clip / half


def ewgs(x, grad, low, high, levels, scaling):
    """The gradient that reaches `x` inside the range: g + d |g| (x_in - x_out), both as shares of the range."""
    share = (np.clip(x, low, high) - low) / (high - low)
    out = np.round(share * (levels - 1)) / (levels - 1)
    return (grad + scaling * np.abs(grad) * (share - out)) * ((x >= low) & (x <= high))


def csq(w, grad, s, bits):
    """(w_q, dL/dw, dL/ds), the step's gradient scaled by 1 / sqrt(N Qp)."""
    half = (2**bits - 1) / 2
    y = s * (np.clip(np.floor(w / s), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) + 0.5)
    inside = np.abs(w) <= half * s
    to_s = np.where(inside, (y - w) / s, np.sign(w) * half)
    return y, grad * inside, (grad * to_s).sum() / np.sqrt(w.size * half)


def apot_levels(bits):
    """The magnitudes of `bits` - 1 bits, as shares of the largest: all sums of p0, p1 ..., written out in powers."""
    sets = {
        2: [[0, 1]],
        3: [[0, 2**-1, 2**-2, 2**-3]],
        4: [[0, 2**-1, 2**-2, 2**-4], [0, 2**-3]],
        5: [[0, 2**-1, 2**-3, 2**-5], [0, 2**-2, 2**-4, 2**-6]],
        6: [[0, 2**-1, 2**-3, 2**-6], [0, 2**-2, 2**-4, 2**-7], [0, 2**-5]],
    }[bits]
    values = np.array([sum(combination) for combination in itertools.product(*sets)])
    return np.sort(values) / values.max()


def apot(w, a, bits):
    """w_q: a times the nearest level of the normalised weight's share of it."""
    share = np.clip((w - w.mean()) / w.std() / a, -1, 1)
    levels = apot_levels(bits)
    return a * np.sign(share) * levels[np.abs(np.abs(share)[..., None] - levels).argmin(-1)]
