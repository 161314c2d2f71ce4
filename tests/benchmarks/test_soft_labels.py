"""Scripts on stored answers: what codes lose, and steps that are timed."""

import pytest
import torch

from soft_label_codes import KINDS, lost
from soft_labels import rows
from spequant.data import Augment, ImageSet, make_soft_labels
from spequant.data.soft_labels import decoded, encoded
from spequant.models import make_network


def test_roots_in_8_bits_are_what_the_library_stores():
    logits = 3 * torch.randn(64, 12)
    p = torch.softmax(logits.double(), -1)
    for top in (3, 12):
        read = decoded(*encoded(logits, top, 1.0), 12, 1.0).double()
        assert lost(p, top, "root", 8) == pytest.approx(float((p * (p.log() - read)).sum(-1).mean()), rel=1e-3)
    assert lost(p, 12, "exact", 0) == pytest.approx(0, abs=1e-9)
    assert lost(p, 12, "root", 8) < lost(p, 12, "root", 6) < lost(p, 12, "linear", 8) and len(KINDS) == 6


@pytest.mark.slow
def test_each_row_does_a_step(tmp_path):
    data = ImageSet(
        torch.randint(0, 256, (128, 3, 8, 8), dtype=torch.uint8), torch.arange(128) % 10, (0.5,) * 3, (0.25,) * 3, 10
    )
    teacher = make_network("resnet8", classes=10).eval()
    labels = make_soft_labels(teacher, data, Augment(), tmp_path / "labels", slots=2)
    assert all(step() > 0 for step in rows(teacher, "resnet8", data, labels).values())
