"""Overlap of boxes."""

import pytest
import torch

from spequant.methods.tasks.boxes import BoxMeter, intersection_over_union


def test_overlap_is_that_of_torchvision():
    from torchvision.ops import box_iou

    corners = torch.rand(2, 9, 2) * 20
    a, b = (torch.cat([x, x + 1 + torch.rand(9, 2) * 10], dim=1) for x in corners)
    torch.testing.assert_close(intersection_over_union(a, b[:4]), box_iou(a, b[:4]))
    assert intersection_over_union(a, b[:0]).shape == (9, 0)


def test_mean_average_precision_is_there_with_its_packages():
    pytest.importorskip("torchmetrics")
    pytest.importorskip("pycocotools")
    box = {"boxes": torch.tensor([[0.0, 0, 10, 10]]), "labels": torch.tensor([1])}
    near = {**box, "boxes": torch.tensor([[0.0, 0, 10, 8]])}  # an overlap of .8
    meter = BoxMeter(lambda logits: [{**box, "scores": torch.tensor([0.9])}, {**near, "scores": torch.tensor([0.8])}])
    meter.update(torch.zeros(2), (None, [box, box]))
    figures = meter.compute()
    assert figures["map_50"] == pytest.approx(100) and figures["f1"] == pytest.approx(100)
    assert 70 < figures["map"] < 100
