"""Every method with every task: it trains, or it refuses the task by name; docs/tasks.md has the table."""

from pathlib import Path

import pytest
import torch

from spequant.methods import SPEQ, tasks
from spequant.methods import by_name as methods
from spequant.methods.base import trained_by
from support.starts import start
from support.task_networks import kind

DETECTORS = ["ssd", "retinanet", "fcos", "faster-rcnn"]
REFUSED = {
    "member-ensemble": {"regression", "detection"},
    "qfd": {"detection"},
    "squat": {"detection"},
    "gplq": {"detection"},
    "cmt-kd": {"detection"},
    "block-replacement": {"detection"},
}
CERTAIN = SPEQ.Settings(probability=1.0)
"""whose teacher has more bits everywhere, so that it differs from the student"""
OPTIONS = {
    "apprentice": {"joint": True},
    "speq": {"probability": 1.0},
    "extended-speq": {"speq": CERTAIN, "average": 0.9},
    "speq-distill": {"speq": CERTAIN},
}
WITHOUT_TEACHER = ("retrain", "bin-regularization", "dampening")
QUICK = {"retrain", "speq", "distill"}
CASES = [
    pytest.param(
        method, task, marks=[] if method in QUICK and (task != "detection" or method == "speq") else pytest.mark.slow
    )
    for method in methods
    for task in tasks.by_name
    if task not in REFUSED.get(method, ())
]


def build(method, subject):
    torch.manual_seed(0)
    settings = methods[method](**OPTIONS.get(method, {}))
    at = subject.prepared
    return settings.build(start(subject.network, at(2), quantized=at, task=subject.task))


def step(method, model, subject):
    """The losses of one step of `method`, with gradient."""
    losses = method(model, subject.batch)
    losses.total.backward()
    assert losses.total.isfinite() and losses.distill.isfinite()
    return losses


@pytest.mark.parametrize(("method", "task"), CASES)
def test_a_method_trains_a_network_for_a_task(method, task):
    torch.manual_seed(0)
    subject = kind(task)
    model = subject.prepared(2)
    trainer = build(method, subject)
    losses = step(trainer, model, subject)
    reached = [p.grad is not None and bool(p.grad.any()) for p in model.parameters() if p.dim() > 1]
    assert all(reached) or (method == "gplq" and sum(reached) == len(reached) - 1)  # GPLQ begins without the head
    if method not in (*WITHOUT_TEACHER, "qkd"):  # QKD begins without its teacher
        assert losses.distill > 0
    partner = trained_by(trainer)
    if partner is not None and method in ("apprentice", "cmt-kd"):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in partner.parameters())


@pytest.mark.slow
@pytest.mark.parametrize("which", DETECTORS)
@pytest.mark.parametrize("method", [m for m in methods if "detection" not in REFUSED.get(m, ())])
def test_a_method_trains_each_kind_of_detector(method, which):
    torch.manual_seed(0)
    subject = kind(f"detection:{which}")
    step(build(method, subject), subject.prepared(2), subject)


@pytest.mark.parametrize(("method", "task"), [(m, t) for m, refused in REFUSED.items() for t in sorted(refused)])
def test_a_method_refuses_a_task_by_name(method, task):
    subject = kind(task)
    with pytest.raises(ValueError, match=rf"task is {type(subject.task).__name__}, which \w+ cannot train"):
        build(method, subject)


def test_the_documentation_has_the_table():
    rows = [f"| `{m}` | {', '.join(f'`{t}`' for t in sorted(REFUSED.get(m, ()))) or 'none'} |" for m in methods]
    page = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text()
    assert "\n".join(rows) in page, "docs/tasks.md: the table of refused tasks is\n" + "\n".join(rows)
