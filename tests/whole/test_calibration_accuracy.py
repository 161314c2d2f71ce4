"""Calibration alone at 8 bits: what a trained network loses on real data."""

import pytest

import spequant
from spequant.data import Augment, eval_batches, load_cifar10, train_batches
from spequant.models import load_weights, resnet20
from spequant.quantizers import PACT, SAWB
from spequant.train import evaluate


@pytest.mark.slow
def test_w8a8_by_calibration_loses_at_most_a_fifth_of_a_point(shared_data):
    train, test = load_cifar10(shared_data)
    model = resnet20()
    load_weights(model, shared_data / "weights" / "resnet20-12fca82f.th")
    model = spequant.prepare(model, weight=SAWB(8), act=PACT(8))
    spequant.calibrate(model, train_batches(train, 128, seed=0, epoch=0, augment=Augment()))
    accuracy = evaluate(model, eval_batches(test, 500)).accuracy
    print(f"W8A8 by calibration: {accuracy:.2f}")
    assert accuracy >= 91.73 - 0.2
