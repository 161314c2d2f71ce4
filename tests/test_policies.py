"""Precision of activations: draws and their frequencies, seeds, the end of a context, threads, errors."""

import copy
import pickle
import threading
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant import Fixed, Stochastic, precision
from spequant.layers import act_quantizers, weight_quantizers
from spequant.models import resnet8
from spequant.policies import LowBit, Mix, unquantized
from spequant.quantizers import PACT, SAWB


@pytest.fixture(scope="module")
def calibrated():
    model = spequant.prepare(resnet8(), weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [torch.randn(64, 3, 8, 8)], samples=64)
    return model


@pytest.fixture
def model(calibrated):
    return copy.deepcopy(calibrated)


def levels(model):
    return {name: int(q.levels) for name, q in act_quantizers(model).items()}


def draws_of(model, policy, steps, **seeds):
    rows, low = [], [q for q in act_quantizers(model).values() if q.bits == 2]
    for step in range(steps):
        with precision(model, policy, step=step, **seeds):
            rows.append([int(q.levels) for q in low])
    return np.array(rows)


@pytest.mark.parametrize("u", [pytest.param(0.5, marks=pytest.mark.slow), 0.3])
def test_frequencies_are_binomial_and_layers_independent(model, u):
    rows = draws_of(model, Stochastic(8, u), 1000) == 256
    assert rows.shape == (1000, 6)
    bound = 5 * (u * (1 - u) / 1000) ** 0.5
    assert (abs(rows.mean(0) - u) < bound).all()
    correlation = np.corrcoef(rows.T) - np.eye(6)
    assert abs(correlation).max() < 5 / 1000**0.5


def test_mix_is_uniform_over_its_widths(model):
    rows = draws_of(model, Mix(), 700)
    values, counts = np.unique(rows, return_counts=True)
    assert values.tolist() == [4, 7, 16, 31, 64, 127, 256]  # refinements of 4 levels nearest to 2^b
    n, p = rows.size, 1 / 7
    assert (abs(counts - n * p) < 5 * (n * p * (1 - p)) ** 0.5).all()


def test_a_draw_follows_from_seed_step_and_rank(model):
    draws = {}
    for seed, step, rank in product(range(2), range(2), range(2)):
        with precision(model, Stochastic(), seed=seed, step=step, rank=rank):
            draws[seed, step, rank] = tuple(levels(model).values())
        with precision(model, Stochastic(), seed=seed, step=step, rank=rank):
            assert tuple(levels(model).values()) == draws[seed, step, rank]
    assert len(set(draws.values())) >= 7  # 8 draws for six layers: two may be equal by chance


def test_fixed_assignments(model):
    home = levels(model)
    with precision(model, Stochastic(8, 1.0)):
        assert all(n >= 255 for n in levels(model).values())
    with precision(model, Fixed(8)):
        assert all(n >= 255 for n in levels(model).values())
    with precision(model, Fixed({"layer1.*": 8, "layer1.0.conv2": 4})):
        changed = {name: n for name, n in levels(model).items() if n != home[name]}
        assert changed == {"layer1.0.conv1": 256, "layer1.0.conv2": 16}
    with precision(model, Fixed(2)):
        assert levels(model)["conv1"] == 3  # signed, and below its home bits
    assert levels(model) == home
    with (
        pytest.raises(ValueError, match="'head' matches no activation quantizer"),
        precision(model, Fixed({"head": 8})),
    ):
        pass


def test_bounds_do_not_move(model):
    x = torch.randn(4, 3, 8, 8)
    q = act_quantizers(model)["layer2.0.conv1"]
    before = [b.clone() for b in q.bounds(x)]
    with precision(model, Stochastic(8, 1.0)):
        assert int(act_quantizers(model)["conv1"].levels) == 255
        assert all(torch.equal(a, b) for a, b in zip(before, q.bounds(x), strict=True))


def export(model):
    return torch.export.export(model, (torch.randn(2, 3, 8, 8),))


def test_a_context_ends_after_an_exception_and_refuses_copies_inside(model):
    home = levels(model)
    with pytest.raises(KeyError), precision(model, Fixed(8)):
        for refused in (copy.deepcopy, pickle.dumps, export):
            with pytest.raises(RuntimeError, match="inside a precision context"):
                refused(model)
        raise KeyError
    assert levels(model) == home
    copy.deepcopy(model)
    export(model)


def test_a_move_inside_keeps_levels_in_fp32(model):
    home = levels(model)
    with precision(model, Fixed(8)):
        model.double()
    assert levels(model) == home
    assert all(q.levels.dtype == torch.float32 for q in act_quantizers(model).values())


def test_errors(model):
    for make, message in (
        (lambda: Stochastic(9), "high_bits is 9"),
        (lambda: Stochastic(8, 1.5), "probability is 1.5"),
        (lambda: Mix(()), "widths is empty"),
        (lambda: Mix((2, 0)), "widths is 0"),
        (lambda: Fixed(0), "bits is 0"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    for bare in (nn.Linear(2, 2), spequant.prepare(resnet8(), weight=SAWB(2), act=None)):
        with pytest.raises(ValueError, match="no activation quantizer"), precision(bare, Stochastic()):
            pass


def test_low_bit_changes_only_the_layers_of_fewest_bits(model):
    home = {name: q.bits for name, q in act_quantizers(model).items()}
    with precision(model, LowBit(5)):
        widths = {name: int(q.levels) for name, q in act_quantizers(model).items()}
    assert all((widths[name] == 31) == (bits == 2) for name, bits in home.items()) and set(home.values()) == {2, 8}
    with pytest.raises(ValueError, match=r"bits is 0; .* 1 to 8"):
        LowBit(0)


def in_a_thread(function):
    """The result of `function` in a new thread, or its exception."""
    results = []

    def call():
        try:
            results.append(function())
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    thread.join()
    return results[0]


def test_a_context_does_not_reach_the_forward_of_another_thread(model):
    x = torch.randn(8, 3, 8, 8)
    model.eval()
    home = model(x)
    with precision(model, Fixed(8)):
        inside = model(x)
        assert torch.equal(in_a_thread(lambda: model(x)), home)
        assert not torch.equal(inside, home) and torch.equal(model(x), inside)
    assert torch.equal(model(x), home)


def test_a_second_context_on_the_same_model_in_another_thread_is_refused(model):
    x = torch.randn(8, 3, 8, 8)

    def enter(other):
        with precision(other, Fixed(4)):
            return other(x)

    other = copy.deepcopy(model)
    expected = enter(other)
    with precision(model, Fixed(8)):
        before = levels(model)
        assert "another thread" in str(in_a_thread(lambda: enter(model)))
        assert levels(model) == before
        assert torch.equal(in_a_thread(lambda: enter(other)), expected)
    assert torch.equal(in_a_thread(lambda: enter(model)), expected)


def test_replicas_of_data_parallel_run_at_the_bits_of_their_model(model):
    quantizer = next(iter(act_quantizers(model).values()))
    with precision(model, Fixed(3)):
        replica = quantizer._replicate_for_data_parallel()
        assert int(in_a_thread(lambda: replica.levels)) == int(quantizer.levels) != int(quantizer.home_levels)


@pytest.mark.parametrize("value", [-1, 1.5, True, "a"])
def test_a_seed_that_is_no_whole_number_is_refused_at_once(model, value):
    for make in (lambda: spequant.SPEQ(seed=value), lambda: precision(model, Stochastic(), seed=value).__enter__()):
        with pytest.raises(ValueError, match=f"^seed is {value!r}"):
            make()
    with pytest.raises(ValueError, match=r"^step is -1"), precision(model, Stochastic(), step=-1):
        pass
    with precision(model, Stochastic(), seed=np.int64(3), step=np.int64(2)):
        pass


def test_float_inputs_are_left_alone(model):
    quantizer = next(iter(act_quantizers(model).values()))
    for policy in (Stochastic(8, 1.0), Fixed(8), LowBit(8), Mix()):
        quantizer.bits = None
        with precision(model, policy):
            assert quantizer.levels is quantizer.home_levels
    with pytest.raises(ValueError, match="no activation quantizer"), precision(nn.Sequential(PACT(None)), Fixed(8)):
        pass


def test_unquantized_tensors_pass_as_they_are_until_the_context_ends(model):
    x = torch.randn(4, 3, 8, 8)
    low = model(x)
    quantizers = [*act_quantizers(model).values(), *weight_quantizers(model).values()]
    with unquantized(quantizers):
        assert all(torch.equal(q(x), x) for q in quantizers)
        free = model(x)
        with unquantized(quantizers[:1]):
            pass
        assert torch.equal(model(x), free)  # the context within has not ended this one
    assert not torch.equal(low, free) and torch.equal(model(x), low)
    x = torch.randn(2, 3, 8, 8)
    quantized = model.eval()(x)
    with unquantized(quantizers):
        copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        assert not torch.equal(model(x), quantized)
    assert all(torch.equal(network(x), quantized) for network in (model, *copies))
    with unquantized(quantizers):
        free = model(x)
        spequant.calibrate(model, [x], samples=len(x), reestimate=False)
        assert torch.equal(model(x), free)  # calibration has not ended this context
    quantized = model(x)
    assert not torch.equal(quantized, free)
    with pytest.raises(KeyError), unquantized(quantizers):
        raise KeyError
    assert torch.equal(model(x), quantized)
