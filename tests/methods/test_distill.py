"""Distillation from a separate teacher, with and without SPEQ, against the equations; what learns."""

from dataclasses import replace

import pytest
import torch

from reference import losses as literal
from spequant import SPEQ, Distill
from spequant.methods import SPEQDistill
from spequant.methods.losses import cosine, kl
from spequant.policies import Stochastic
from support.equations import at, cross_entropy, grads, logits, near, same, small_network, statistics
from support.starts import start


@pytest.mark.parametrize(("loss", "twin"), [({}, literal.kl), ({"loss": cosine}, literal.cosine)])
def test_the_total_follows_the_equation(loss, twin, model, floating, batch):
    method = Distill(floating, temperature=2, weight=0.5, **loss)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=False)
    losses = method(model, batch)
    near(losses.distill, twin(z_s, z_t, 2.0))
    near(losses.total, cross_entropy(z_s, batch[1]) + 0.5 * twin(z_s, z_t, 2.0))


def test_a_separate_teacher_is_a_frozen_copy(model, floating, batch):
    method = Distill(floating)
    assert method.teacher is not None and method.teacher is not floating
    assert not method.teacher.training and floating.training
    before = statistics(method.teacher)
    method(model, batch).total.backward()
    assert not any(grads(method.teacher)) and same(before, statistics(method.teacher)) and all(grads(model))


def test_both_teachers_together(model, batch):
    other = small_network()
    z_s, z_t = logits(model, batch, train=True), logits(other, batch, train=False)
    z_speq = at(model, batch, Stochastic())
    both = SPEQDistill(SPEQ(weight=2.0), Distill(other, weight=0.5))(model, batch)
    distill = 2 * literal.cosine(z_s, z_speq, 1) + 0.5 * literal.kl(z_s, z_t, 1)
    near(both.distill, distill)
    near(both.total, cross_entropy(z_s, batch[1]) + distill)


def test_answers_of_a_batch_stand_in_for_a_teacher(model, floating, batch):
    answers = torch.from_numpy(logits(floating, batch, train=False)).float()
    for loss in (kl, cosine):
        live, stored = Distill(floating, loss=loss, temperature=2), Distill(loss=loss, temperature=2)
        expected, losses = live(model, batch), stored(model, (*batch, answers))
        assert torch.equal(losses.total, expected.total) and torch.equal(losses.distill, expected.distill)
    both = SPEQDistill(SPEQ(), Distill())(model, (*batch, answers))
    assert torch.equal(both.total, SPEQDistill(SPEQ(), Distill(floating))(model, batch).total)
    for other in (batch, {"inputs": batch[0], "labels": batch[1]}):
        with pytest.raises(ValueError, match="teacher is None"):
            Distill().teach(model, other)


def test_a_file_stands_in_for_a_teacher_in_settings(tmp_path, floating):
    settings = Distill.Settings(soft_labels=tmp_path / "labels", temperature=2.0)
    assert settings.soft_labels_file == (tmp_path / "labels", 2.0) and not settings.fixed_teachers
    assert settings.build(start(floating)).teacher is None
    assert SPEQDistill.Settings(distill=settings).soft_labels_file == settings.soft_labels_file
    assert Distill.Settings().soft_labels_file is None and len(Distill.Settings().fixed_teachers) == 1
    with pytest.raises(ValueError, match=r"teacher is .*other.*soft_labels"):
        replace(settings, teacher=tmp_path / "other")


@pytest.mark.parametrize(("options", "message"), [({"temperature": 0}, "temperature is 0"), ({"weight": -1}, "weight")])
def test_bad_settings_are_named(options, message, floating):
    with pytest.raises(ValueError, match=message):
        Distill(floating, **options)
