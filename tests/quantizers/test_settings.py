"""Settings of quantizers: every class has its own, a user's too; what is out of range is refused."""

from dataclasses import fields

import pytest

from spequant.quantizers import LSQ, PACT, SAWB, MinMax, QuantizerSettings, by_name


@pytest.mark.parametrize("name", by_name)
def test_every_quantizer_is_made_by_its_settings(name):
    kind = by_name[name]
    for bits in (None, 3):
        quantizer = kind.Settings().build(bits)
        assert type(quantizer) is kind and quantizer.bits == bits
    assert issubclass(kind.Settings, QuantizerSettings) and kind.Settings() == kind.Settings()


@pytest.mark.parametrize("name", by_name)
def test_every_quantizer_can_have_powers_of_two_as_steps_and_keeps_them_at_other_bits(name):
    quantizer = by_name[name].Settings().build(4, power_of_two=True)
    assert quantizer.power_of_two and quantizer.at(8).power_of_two and quantizer.at(8).config()["power_of_two"]
    assert "power_of_two" not in by_name[name](4).config()


def test_a_quantizer_that_does_not_take_powers_of_two_is_named():
    class Free(LSQ):
        def __init__(self, bits, *, signed=None, shape=(), of_weight=False):
            super().__init__(bits, signed=signed, shape=shape, of_weight=of_weight)

    assert not Free.Settings().build(4).like(bits=2).power_of_two
    with pytest.raises(ValueError, match="power_of_two is True, but Free"):
        Free.Settings().build(4, power_of_two=True)


def test_options_reach_the_quantizer():
    assert PACT.Settings(decay=0.5).build(2).decay == 0.5
    assert SAWB.Settings(clip_gradient=True).build(2).clip_gradient
    assert MinMax.Settings(percentile=99.0).build(8).percentile == 99.0


def test_a_subclass_makes_itself():
    class Own(LSQ):
        """A quantizer of somebody's own."""

    assert type(Own.Settings().build(4)) is Own and LSQ.Settings.kind is LSQ
    assert not fields(Own.Settings) and Own.Settings.__doc__ == "A quantizer of somebody's own."


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: PACT.Settings(decay=-1.0), "decay is -1"),
        (lambda: MinMax.Settings(percentile=0.0), "percentile is 0"),
    ],
)
def test_options_out_of_range_are_refused(make, named):
    with pytest.raises(ValueError, match=named):
        make()
