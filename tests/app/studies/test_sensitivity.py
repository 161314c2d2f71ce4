"""What each layer costs at few bits against the float modules in place of the others, and the best of a budget."""

import copy
import itertools

import numpy as np
import pytest
import torch

import spequant
from spequant.app.studies.greedy import greedy_order
from spequant.app.studies.sensitivity import assign, losses_alone, losses_raised, low_bit_layers
from spequant.data import ImageSet
from spequant.layers import QuantizedAdd, QuantizedLayer
from spequant.models import CifarResNet
from spequant.preparation.placement import replace_modules
from spequant.quantizers import PACT, SAWB, percentile


def test_one_layer_alone_is_quantized():
    pixels, labels = torch.randint(0, 256, (48, 3, 8, 8), dtype=torch.uint8), torch.randint(0, 10, (48,))
    images = ImageSet(pixels, labels, mean=(0.5,) * 3, std=(0.3,) * 3, classes=10)
    model = spequant.prepare(CifarResNet(1, widths=(8, 8, 16)), weight=SAWB(2), act=PACT(2))
    x = images.normalise(pixels)
    spequant.calibrate(model, [x], samples=48, rule=percentile(99.9))
    statistics = {k: v.clone() for k, v in model.state_dict().items()}
    without, losses = losses_alone(model, images)
    assert all(torch.equal(v, statistics[k]) for k, v in model.state_dict().items())
    names = [n for n, m in model.named_modules() if isinstance(m, QuantizedLayer)]
    assert list(losses) == names and low_bit_layers(model, 2, 2) == names[1:-1]

    def loss(kept):  # literally: the float modules in the others' places
        plain = copy.deepcopy(model)
        made = {id(m): m.layer for n, m in plain.named_modules() if isinstance(m, QuantizedLayer) and n != kept}
        made |= {id(m): m.add for m in plain.modules() if isinstance(m, QuantizedAdd)}
        with torch.no_grad():
            return float(torch.nn.functional.cross_entropy(replace_modules(plain, made).train()(x), labels))

    assert without == pytest.approx(loss(None), rel=1e-5)
    assert losses == pytest.approx({n: loss(n) for n in names}, rel=1e-4)
    assert len(set(losses.values())) == len(names)
    trained, raised = losses_raised(model, names[1:-1], images)
    first = greedy_order(model, images)
    assert trained == pytest.approx(first[0].loss, rel=1e-5) and min(raised, key=raised.get) == first[1].layer


@pytest.mark.parametrize("seed", range(5))
def test_an_assignment_is_the_best_within_its_budget(seed):
    rng = np.random.default_rng(seed)
    losses = {n: dict(zip((2, 3, 4), sorted(rng.random(3), reverse=True), strict=True)) for n in "abcde"}
    costs = {n: {bits: int(rng.integers(10, 1000)) * bits**2 for bits in (2, 3, 4)} for n in "abcde"}
    budget = 0.5 * sum(c[2] + c[4] for c in costs.values())
    found = assign(losses, costs, budget)

    def total(table, widths):
        return sum(table[n][bits] for n, bits in zip(table, widths, strict=True))

    allowed = [w for w in itertools.product((2, 3, 4), repeat=5) if total(costs, w) <= budget]
    assert tuple(found.values()) in allowed
    assert total(losses, found.values()) == pytest.approx(min(total(losses, w) for w in allowed))
    with pytest.raises(ValueError, match=r"budget is 1; expected [\d,]+ or more"):
        assign(losses, costs, 1)
