"""Calibration alone at 8 bits: what a trained network loses on real data."""

import pytest

from spequant.data import eval_batches
from spequant.train import evaluate
from support.cifar_networks import calibrated_resnet20


@pytest.mark.slow
def test_w8a8_by_calibration_loses_at_most_a_fifth_of_a_point(shared_data):
    model, test = calibrated_resnet20(shared_data, 8)
    accuracy = evaluate(model, eval_batches(test, 500)).accuracy
    print(f"W8A8 by calibration: {accuracy:.2f}")
    assert accuracy >= 91.73 - 0.2
