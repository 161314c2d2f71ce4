"""The settings of a quantizer in its state: they survive a round trip, and others are refused by name."""

import pytest

from spequant.quantizers.state import check_settings, decode_flags, encode_settings


@pytest.mark.parametrize("signed", [False, True, None])
@pytest.mark.parametrize(("calibrated", "sign_open"), [(False, True), (True, False)])
def test_flags_survive_a_round_trip(signed, calibrated, sign_open):
    settings = encode_settings(2, signed, calibrated, sign_open, "PACT", (4, 1))
    assert decode_flags(settings) == (signed, calibrated, sign_open)
    check_settings(settings, "conv", 2, "PACT", (4, 1))


@pytest.mark.parametrize(
    ("bits", "kind", "shape", "message"),
    [
        (4, "PACT", (), "^conv: .* 2 bits, .* 4"),
        (None, "PACT", (), "^conv: .* 2 bits, .* one of no;"),
        (2, "LSQ", (), "^conv: .*another kind .*LSQ"),
        (2, "PACT", (4, 1), r"^conv: .*shape \(\), .* \(4, 1\)"),
    ],
)
def test_settings_of_another_quantizer_are_refused(bits, kind, shape, message):
    settings = encode_settings(2, True, True, False, "PACT", ())
    with pytest.raises(ValueError, match=message):
        check_settings(settings, "conv", bits, kind, shape)
