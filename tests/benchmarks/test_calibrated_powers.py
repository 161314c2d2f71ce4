"""Networks calibrated in pairs: one has powers of two as scales, the other has not."""

import torch
from torch import nn

from calibrated_powers import accuracy, calibrated
from spequant.layers import act_quantizers


def test_both_kinds_of_scales_are_calibrated_and_measured():
    network = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    batches = [(torch.randn(16, 4), torch.randint(3, (16,)))]
    for power_of_two in (False, True):
        model = calibrated(network, batches, 4, power_of_two)
        assert {q.power_of_two for q in act_quantizers(model).values()} == {power_of_two}
    answers = model(batches[0][0]).argmax(1)
    assert accuracy(model, [(batches[0][0], answers)]) == 100
