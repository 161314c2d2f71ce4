"""One trained network at widths that it was not trained at."""

from dataclasses import replace

import pytest
import torch

import spequant
from spequant.app.runs import load_run
from spequant.app.runs.folder import read_result
from spequant.app.studies.widths import at_activation_widths, every_pair, weights_at
from spequant.layers import weight_quantizers
from spequant.methods import Retrain
from spequant.models import CifarResNet
from spequant.quantizers import LSQ, PACT


def test_weights_at_another_width_keep_their_bounds():
    model = spequant.prepare(CifarResNet(1, widths=(8, 8, 16)), weight=LSQ(2), act=PACT(2))
    spequant.calibrate(model, [torch.randn(32, 3, 8, 8)], samples=32)
    layer = model.layer1[0].conv1
    q = layer.weight_quantizer
    home, bounds = q(layer.float_weight), q.bounds(layer.float_weight)
    with weights_at(model, 8, 2):
        fine = q(layer.float_weight)
        assert len(torch.unique(fine)) > 20 and all(map(torch.equal, q.bounds(layer.float_weight), bounds))
        assert {int(q.levels) for q in weight_quantizers(model).values() if q.bits == 8} == {256}  # ends keep theirs
    assert torch.equal(q(layer.float_weight), home)
    q.hold_codes(q.encode(layer.float_weight))
    assert q.frozen is not None
    q.frozen[:2] = True
    with torch.no_grad():
        layer.float_weight[:2] = -layer.float_weight[:2]  # frozen weights stay where they were
    with weights_at(model, 8, 2):
        kept = q(layer.float_weight)
        assert torch.allclose(kept[:2], home[:2], atol=1e-6) and torch.equal(kept[2:], fine[2:])
        low, high = q.bounds(layer.float_weight)
        values = low + q.encode(layer.float_weight) * (high - low) / (q.levels - 1)
        assert torch.allclose(values, kept, atol=1e-6)
    assert torch.equal(q(layer.float_weight), home)
    with torch.no_grad():
        layer.float_weight[:2] = -layer.float_weight[:2]
    inside = (layer.float_weight >= bounds[0]) & (layer.float_weight <= bounds[1])
    assert (fine - layer.float_weight)[inside].abs().max() < (home - layer.float_weight)[inside].abs().max() / 10


def test_a_run_at_every_width(digits_run):
    """As trained its own figure, held or refitted; more bits on its bounds lose nothing, refitted they gain."""
    recipe, model, _ = load_run(digits_run)
    recipe = replace(recipe, quant=replace(recipe.quant, percentile=99.9), data=replace(recipe.data, images=512))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pairs = every_pair(recipe, model, (2, 8))
    found = at_activation_widths(recipe, model, (2, 8))
    assert list(pairs) == [(2, 2), (2, 8), (8, 2), (8, 8)] and list(found) == [2, 8]
    trained = read_result(digits_run)["test_accuracy"]
    assert pairs[2, 2]["bounds held"] == found[2] == trained and pairs[2, 8]["bounds held"] == found[8]
    assert pairs[8, 8]["refitted"] > 90 and pairs[2, 2]["refitted"] > 50
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    floating = replace(recipe, quant=replace(recipe.quant, act_bits=None), method=Retrain.Settings())
    with pytest.raises(ValueError, match="recipe is 'digits-w2a2-speq'"):
        every_pair(floating, model, (2,))
