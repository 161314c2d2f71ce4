"""The integer twin: a program in torch, code by code what the fake-quantized network has."""

import pytest
import torch

from spequant.deploy import Twin, lower
from spequant.models import mobilenet_v2, vgg16_bn
from spequant.quantizers import PACT, SAWB
from support.integer_networks import QUANTIZED, lowered, prepared


@pytest.mark.parametrize("name", QUANTIZED)
def test_the_twin_answers_as_the_network(name):
    case = lowered(name)
    got, logits = case.twin(case.x), case.model(case.x).detach()
    assert (got.argmax(1) == logits.argmax(1)).float().mean() >= 31 / 32
    torch.testing.assert_close(got, logits, rtol=1e-3, atol=2e-2 * float(logits.std()))


@pytest.mark.slow
@pytest.mark.parametrize("network", [vgg16_bn, mobilenet_v2])
def test_other_networks(network):
    x = torch.randn(8, 3, 32, 32)
    model = prepared(network(), x, SAWB(4), PACT(4))
    assert (Twin(lower(model, x[:1]))(x).argmax(1) == model(x).argmax(1)).float().mean() >= 7 / 8
