"""Distillation losses against numpy references, and the gradients in their docstrings."""

import inspect
import math
import re

import pytest
import torch
from jaxtyping import TypeCheckError

from reference import losses as literal
from spequant.methods.losses import cosine, ensemble, kl, squared_error


@pytest.fixture
def logits():
    return (torch.randn(6, 10) * 3).requires_grad_(), torch.randn(6, 10) * 3


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize("name", ["cosine", "kl"])
def test_values(name, temperature, logits):
    student, teacher = logits
    value = {"cosine": cosine, "kl": kl}[name](student, teacher, temperature)
    expected = getattr(literal, name)(student.detach().double().numpy(), teacher.double().numpy(), temperature)
    assert float(value.detach()) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_cosine_gradient(temperature, logits):
    student, teacher = logits
    cosine(student, teacher, temperature).backward()
    expected = literal.cosine_gradient(student.detach().double().numpy(), teacher.double().numpy(), temperature)
    torch.testing.assert_close(student.grad.double(), torch.from_numpy(expected), rtol=1e-4, atol=1e-7)


BAD_SHAPES = pytest.mark.parametrize("shape", [(6, 1), (1, 10), (6, 12), (6, 2, 10)])


@pytest.mark.parametrize("loss", [cosine, kl])
@BAD_SHAPES
def test_a_teacher_of_other_classes_or_samples_is_refused(loss, shape):
    """The error is the library's, or jaxtyping's, which checks the annotated shapes in tests."""
    with pytest.raises((ValueError, TypeCheckError), match="teacher"):
        loss(torch.randn(6, 10), torch.randn(shape), 1.0)


@pytest.mark.parametrize("loss", [cosine, kl])
@BAD_SHAPES
def test_bad_shapes_are_refused_without_jaxtyping(loss, shape):
    with pytest.raises(ValueError, match=rf"\(6, 10\), the teacher's {re.escape(str(shape))}"):
        inspect.unwrap(loss)(torch.randn(6, 10), torch.randn(shape), 1.0)


@pytest.mark.parametrize("loss", [cosine, kl])
@pytest.mark.parametrize("shape", [(6, 1), (6, 2, 1)])
def test_logits_of_one_class_are_refused(loss, shape):
    with pytest.raises(ValueError, match=rf"{re.escape(str(shape))}, one class"):
        loss(torch.randn(shape), torch.randn(shape), 1.0)


def confident(p, classes=10):
    """Logits of a softmax with `p` on class 0, the rest spread evenly."""
    return torch.tensor([[math.log(p)] + [math.log((1 - p) / (classes - 1))] * (classes - 1)])


@pytest.mark.parametrize(
    ("p_s", "p_t", "of_kl", "of_cosine"), [(0.95, 0.15, 1.6, 0.031), (0.8, 0.5, 0.6, 0.039), (0.2, 0.9, 1.4, 0.746)]
)
def test_gradients_of_confident_students_and_unsure_teachers(p_s, p_t, of_kl, of_cosine):
    for loss, expected, tolerance in ((kl, of_kl, 0.005), (cosine, of_cosine, 0.0006)):
        student = confident(p_s).requires_grad_()
        loss(student, confident(p_t), 1.0).backward()
        assert float(student.grad.abs().sum()) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("loss", [cosine, kl])
def test_zero_where_both_coincide_and_fp32_on_low_precision_logits(loss, logits):
    student, teacher = logits
    assert abs(float(loss(teacher, teacher, 2.0))) < 1e-6
    low = loss(student.bfloat16(), teacher.bfloat16(), 1.0)
    assert low.dtype == torch.float32
    assert torch.equal(low, loss(student.bfloat16().float(), teacher.bfloat16().float(), 1.0))


def test_the_softmax_of_an_ensemble_is_the_mean_of_its_softmaxes():
    passes = [torch.randn(4, 10) for _ in range(3)]
    mean = torch.stack([(z / 2).softmax(-1) for z in passes]).mean(0)
    torch.testing.assert_close((ensemble(passes, 2.0) / 2).softmax(-1), mean)
    assert ensemble(passes[:1], 2.0) is passes[0]


def test_kl_leaves_out_classes_masked_with_minus_infinity(logits):
    student, teacher = logits
    masked = torch.tensor([False] * 8 + [True] * 2)
    value = kl(student.masked_fill(masked, -math.inf), teacher.masked_fill(masked, -math.inf), 2.0)
    assert float(value.detach()) == pytest.approx(float(kl(student.detach()[:, :8], teacher[:, :8], 2.0)), rel=1e-5)
    value.backward()
    assert torch.isfinite(student.grad).all()


def test_features_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"\(4, 3\), the teacher's \(4, 1\)"):
        inspect.unwrap(squared_error)(torch.randn(4, 3), torch.randn(4, 1))


def test_the_squared_error_is_over_tokens_without_padding():
    student, teacher = torch.randn(2, 5, 3, requires_grad=True), torch.randn(2, 5, 3)
    gaps = (student - teacher).detach() ** 2
    assert float(squared_error(student, teacher).detach()) == pytest.approx(float(gaps.mean()))
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 0, 0, 0, 0]])[..., None]
    kept = torch.cat([gaps[0, :3], gaps[1, :1]])
    error = squared_error(student, teacher, mask)
    assert float(error.detach()) == pytest.approx(float(kept.mean()))
    error.backward()
    assert not student.grad[0, 3:].any() and not student.grad[1, 1:].any()
