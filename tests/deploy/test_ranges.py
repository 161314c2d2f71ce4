"""Ranges made to agree before a network is measured."""

import pytest
import torch

from spequant.deploy import align_ranges
from spequant.deploy.alignment import finer
from spequant.quantizers import DoReFa
from support.residual import X, prepared, program_of


def addends(model):
    return {name: q for name, q in model.named_modules() if name.endswith("shortcut_quantizer")}


def test_ranges_move_to_the_nearest_that_agree():
    model = prepared()
    before = {name: float(q.clip.detach()) for name, q in addends(model).items()}
    others = {n: p.clone() for n, p in model.named_parameters() if not n.endswith(".clip")}
    assert not finer(program_of(model))
    moved = align_ranges(model, X[:1])
    factors = [float(q.clip.detach()) / before[name] for name, q in addends(model).items()]
    assert [moved[q.name] for q in addends(model).values()] == pytest.approx(factors, rel=1e-5)
    assert all(1 / 1000 < abs(factor - 1) < 1 / 8 for factor in factors)
    assert all(torch.equal(p, others[n]) for n, p in model.named_parameters() if n in others and "bias" not in n)
    assert align_ranges(model, X[:1]) == {}
    assert len(finer(program_of(model))) == 3


def test_ranges_far_from_each_other_stay():
    model = prepared()
    layer, addend = model.get_submodule("a").act_quantizer, next(iter(addends(model).values()))
    for ratio, moves in ((8.0, True), (4.0, False)):
        addend.set_clip(255 * layer.clip.detach() / 3 / ratio)
        clip = addend.clip.clone()
        assert (addend.name in align_ranges(model, X[:1])) == moves
        assert torch.equal(clip, addend.clip) != moves


def test_quantizers_without_a_range_of_their_own_stay():
    model = prepared(3, DoReFa)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    moved = align_ranges(model, X[:1])
    assert all(q.name not in moved for q in model.modules() if isinstance(q, DoReFa))
    assert {n for n, v in model.state_dict().items() if not torch.equal(v, state[n])} <= {
        f"{name}.clip" for name in addends(model)
    }
