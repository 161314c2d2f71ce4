"""fig3: how large the gradients of KL and cosine are, by the confidence of student and teacher."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from spequant.app.runs.folder import environment
from spequant.app.studies.arms import ran_on
from spequant.app.studies.page import StudyReport
from spequant.app.studies.workshop import Workshop
from spequant.methods import losses

CLASS_COUNT = 10
CONFIDENCES = [round(0.05 * i, 2) for i in range(3, 20)]  # 0.15 to 0.95; 0.1 is no preference


def pull(loss: Callable[..., Tensor], student: float, teacher: float) -> float:
    """L1 norm of dL/dz_S, the gradient of a loss to the student's logits.

    Args:
        loss: of (student's logits, teacher's logits, temperature).
        student: the student's probability of the class that both prefer; the other classes share the rest evenly.
        teacher: the teacher's probability of it.
    """
    z = _logits(student).requires_grad_()
    loss(z, _logits(teacher), 1.0).backward()
    assert z.grad is not None
    return float(z.grad.abs().sum())


def _logits(confidence: float) -> Tensor:
    p = torch.full((1, CLASS_COUNT), (1 - confidence) / (CLASS_COUNT - 1), dtype=torch.float64)
    p[0, 0] = confidence
    return p.log()


def fig3(shop: Workshop) -> StudyReport:
    """Gradients of KL and cosine over teacher's and student's confidence; nothing is trained."""
    confidences = CONFIDENCES[::4] if shop.settings.smoke else CONFIDENCES
    rows = [
        {
            "student confidence": s,
            "teacher confidence": t,
            "KL": pull(losses.kl, s, t),
            "cosine": pull(losses.cosine, s, t),
            "command": "spequant study fig3",
        }
        for s in confidences
        for t in confidences
    ]

    def draw(figure: Any) -> None:
        all_axes, names = figure.subplots(1, 2, sharey=True), ("KL", "cosine")
        most = max(row[name] for row in rows for name in names)
        levels = [0.1 * i for i in range(math.ceil(10 * most) + 1)]
        for axes, name in zip(all_axes, names, strict=True):
            values = torch.tensor([row[name] for row in rows]).view(len(confidences), -1)
            shown = axes.contourf(confidences, confidences, values, levels=levels)
            axes.set_xlabel("teacher confidence")
            axes.set_title(name, fontsize=10)
        all_axes[0].set_ylabel("student confidence")
        bar = figure.colorbar(shown, ax=list(all_axes), format="%.1f")
        bar.set_label("L1 norm of the gradient to the logits\ncomputed: no seeds")

    about = (
        f"{CLASS_COUNT} classes, T = 1, one sample. Where the teacher is unsure, cosine hardly pulls at a sure "
        "student; KL pulls the more, the more sure it is."
    )
    facts = ran_on([environment(torch.device("cpu"))])
    return StudyReport("Gradients of KL and cosine (figure 3)", about, rows, draw, facts)
