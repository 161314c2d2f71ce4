"""Gradients of KL and cosine: the known figures."""

import pytest

from spequant.app.studies.gradients import pull
from spequant.methods import losses
from support.study_files import smoke


def test_fig3_has_the_known_figures(tmp_path):
    for student, teacher, kl, cosine in ((0.95, 0.15, 1.60, 0.031), (0.8, 0.5, 0.60, 0.039), (0.2, 0.9, 1.40, 0.746)):
        assert pull(losses.kl, student, teacher) == pytest.approx(kl, abs=0.005)
        assert pull(losses.cosine, student, teacher) == pytest.approx(cosine, abs=0.0006)
    rows = smoke("fig3", tmp_path / "fig3")
    assert len(rows) == 25
