"""Literal numpy twins of the distillation losses, and of the cosine term's gradient."""

import numpy as np


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def cosine(student, teacher, temperature):
    p_s, p_t = softmax(student / temperature), softmax(teacher / temperature)
    c = (p_s * p_t).sum(-1) / np.linalg.norm(p_s, axis=-1) / np.linalg.norm(p_t, axis=-1)
    return temperature**2 * (1 - c).mean()


def cosine_gradient(student, teacher, temperature):
    """dL/dz_S of T^2 mean(1 - cos)."""
    p_s, p_t = softmax(student / temperature), softmax(teacher / temperature)
    n_s, n_t = (np.linalg.norm(p, axis=-1, keepdims=True) for p in (p_s, p_t))
    c = (p_s * p_t).sum(-1, keepdims=True) / n_s / n_t
    g = -(p_t / (n_t * n_s) - c * p_s / n_s**2)
    return temperature**2 / temperature * p_s * (g - (p_s * g).sum(-1, keepdims=True)) / len(student)


def kl(student, teacher, temperature):
    p_s, p_t = softmax(student / temperature), softmax(teacher / temperature)
    return temperature**2 * (p_t * np.log(p_t / p_s)).sum(-1).mean()
