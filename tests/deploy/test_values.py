"""How far values are apart, in deviations: right ones pass for every kind of output, wrong ones are refused by name."""

import numpy as np
import pytest
import torch

from spequant.deploy.parity import Parity
from spequant.deploy.values import LIMITS, MOST, Values


def boxes(samples):
    """Corners in pixels, and a confidence, whose deviation is a thousandth of theirs."""
    corners = torch.rand(samples, 4) * 600
    return torch.cat([corners, torch.rand(samples, 1)], 1)


KINDS = {
    "one-channel map": lambda: torch.randn(16, 1, 6, 6).cumsum(2),
    "image": lambda: torch.rand(16, 3, 6, 6) * torch.tensor([1.0, 0.9, 0.8]).view(3, 1, 1),
    "autoencoder": lambda: torch.sigmoid(4 * torch.randn(64, 20)),
    "regression": lambda: 300 + 10 * torch.randn(64, 1),
    "flat regression": lambda: 300 + 10 * torch.randn(64),
    "boxes": lambda: boxes(64),
    "embedding": lambda: torch.nn.functional.normalize(torch.randn(64, 16)),
    "sequence": lambda: torch.randn(16, 9, 4),
    "scores": lambda: 3 * torch.randn(64, 10),
}


def each(x):
    """(mean, deviation) of each channel."""
    over = [d for d in range(x.dim()) if d != 1]
    return (x.mean(over, keepdim=True), x.std(over, keepdim=True)) if x.dim() > 1 else (x.mean(), x.std())


BREAKS = {
    "scale off": lambda x: 1.25 * x,
    "sign flipped": lambda x: -x,
    "constant": lambda x: each(x)[0].expand_as(x),
    "zero": torch.zeros_like,
    "shifted": lambda x: x + 0.25 * each(x)[1],
    "another sample's": lambda x: x.roll(1, 0),
    "channels swapped": lambda x: x.roll(1, 1) if x.dim() > 1 and x.shape[1] > 1 else x.flip(0),
    "one channel wrong": lambda x: torch.cat([x[:, :-1], x[:, -1:].roll(1, 0)], 1) if x.dim() > 1 else -x,
    "noise": lambda x: x + 0.3 * each(x)[1] * torch.randn_like(x),
}


def compared(x, got, labels=None, moved=None, batch=16) -> Parity:
    parity = Parity()
    for start in range(0, len(x), batch):
        part = slice(start, start + batch)
        own = [None if t is None else t[part] for t in (labels, moved)]
        parity.add(x[part], got[part].numpy(), *own)
    return parity


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("labelled", [False, True])
def test_right_values_of_every_kind_pass(kind, labelled):
    x = KINDS[kind]()
    labels = x.argmax(1) if labelled and kind in ("scores", "image") else None
    near = x + 0.01 * each(x)[1] * torch.randn_like(x) if labels is None else x * 1.01
    for got in (x, near):
        compared(x, got, labels).check("an engine")
    assert str(compared(x, x)).splitlines()[1] == f"output: 0 deviations from the network's ({limit_of(x)})"


def limit_of(x):
    kind = "map" if x.dim() > 2 else "values"
    return f"limit of {kind} {LIMITS[kind]:.2g}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", BREAKS)
def test_wrong_values_of_every_kind_are_refused(kind, how):
    x = KINDS[kind]()
    parity = compared(x, BREAKS[how](x))
    with pytest.raises(ValueError, match=r"^an engine"):
        parity.check("an engine")
    (values,) = parity.values
    assert values.apart > values.limit and str(parity).startswith("refused: ")


def test_a_refusal_names_the_output_the_value_and_the_limit():
    x = torch.randn(64, 2)
    parity = Parity()
    parity.add(x, x.numpy(), None, output="left")
    parity.add(x, 1.2 * x.numpy(), None, output="right")
    with pytest.raises(ValueError, match=rf"engine's .* right .* 0\.2 deviations .* {LIMITS['values']:.2g} of values"):
        parity.check("an engine")
    assert [v.output for v in parity.values] == ["left", "right"]


def test_the_formula_over_batches_channels_and_positions():
    x = torch.randn(50, 3, 4) * torch.tensor([1.0, 100.0, 0.1]).view(3, 1) + 10
    got = x + torch.tensor([0.1, 1.0, 3.0]).view(3, 1)
    x, got = x.double(), got.double()
    errors = (got - x).square().mean((0, 2)) / x.var((0, 2), unbiased=False)
    expected = float(errors.clamp(max=1).mean().sqrt())
    for batch in (50, 7, 1):
        assert compared(x, got, batch=batch).values[0].apart == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("constant", [3.0, -200.0, 0.1])
def test_a_constant_output_is_measured_by_its_size(constant):
    x = torch.full((32, 1), constant)
    for near in (1.001 * x, x + 1e-7 * constant * torch.randn_like(x)):
        compared(x, near).check("an engine")
        compared(near, x).check("an engine")
    for wrong in (1.5 * x, torch.zeros_like(x), -x):
        with pytest.raises(ValueError, match="an engine"):
            compared(x, wrong).check("an engine")


def test_outputs_of_zeros_have_to_be_zeros():
    x = torch.zeros(32, 4)
    compared(x, x).check("an engine")
    with pytest.raises(ValueError, match="1 deviations"):
        compared(x, x + 1e-3).check("an engine")


def test_a_constant_channel_beside_others_is_measured_by_theirs():
    x = torch.cat([torch.randn(64, 3), torch.full((64, 1), 5.0)], 1)
    compared(x, x + 0.01).check("an engine")
    with pytest.raises(ValueError, match="an engine"):
        compared(x, x + torch.tensor([0.0, 0.0, 0.0, 2.0])).check("an engine")


def test_one_sample_is_measured_by_all_of_its_values():
    x = torch.randn(1, 10)
    compared(x, x + 0.01 * torch.randn(1, 10)).check("an engine")
    for wrong in (-x, 1.5 * x, x.flip(1)):
        with pytest.raises(ValueError, match="an engine"):
            compared(x, wrong).check("an engine")


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_refused_by_whose_they_are(bad):
    x = torch.randn(8, 5)
    broken = x.clone()
    broken[3, 2] = bad
    for network, engine, who in ((broken, broken, "the network"), (x, broken, "an engine"), (broken, x, "the network")):
        with pytest.raises(ValueError, match=rf"^1 values of output .* in {who}"):
            compared(network, engine).check("an engine")


def test_padding_is_not_compared():
    x, padding = torch.randn(8, 5), torch.zeros(8, 5, dtype=torch.bool)
    padding[:, 3:] = True
    got = torch.where(padding, float("nan"), x)
    parity = Parity()
    parity.add(x, got.numpy(), None, x, padding=padding)
    parity.check("an engine")
    assert parity.values[0].apart == 0 and parity.equal == 8


def test_sequences_of_several_lengths_are_compared():
    values = Values("output", "values")
    for length in (3, 5, 2):
        x = torch.randn(20, length)
        values.add(x, x + 0.1)
    assert values.apart == pytest.approx(0.1, rel=0.2)


def test_a_chaotic_network_may_be_off_by_twice_its_own_and_not_by_anything():
    x = torch.randn(64, 3)
    own, twice, more = (x + by * torch.randn_like(x) for by in (0.1, 0.15, 0.3))
    strict = compared(x, twice, moved=x).values[0]
    assert strict.apart > strict.limit
    for got, refused in ((twice, False), (more, True)):
        values = compared(x, got, moved=own).values[0]
        assert (values.apart > values.limit) is refused
    values = compared(x, -x, moved=-x).values[0]
    assert values.limit == MOST and values.apart == 1


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"^boxes has the shape \(4,\) .* \(4, 1\)"):
        Parity().add(torch.zeros(4, 1), np.zeros(4, np.float32), None, output="boxes")


def test_nothing_compared_is_no_proof():
    with pytest.raises(ValueError, match="nothing was compared"):
        Parity().check("an engine")
