"""Quantizers as JSON and back: every kind, own classes by name, and what cannot be described."""

import json

import pytest

from spequant.preparation.quantizer_form import made, plain_settings
from spequant.quantizers import LSQ, MinMax, by_name
from spequant.quantizers.held import Held
from support.own_quantizers import Calling, Doubling, Padded, hidden


def through_json(quantizer):
    return made(json.loads(json.dumps(plain_settings(quantizer))))


@pytest.mark.parametrize("name", by_name)
def test_each_kind_comes_back(name):
    kind = by_name[name]
    for quantizer in (kind(3, of_weight=kind.weights_only, shape=(4, 1)), kind(None, of_weight=kind.weights_only)):
        quantizer.name = "layer"
        again = through_json(quantizer)
        assert type(again) is kind and again.config() == quantizer.config() and again.name == "layer"
        assert again.home_levels == quantizer.home_levels and again.calibrated == quantizer.calibrated
        assert again.state_dict().keys() == quantizer.state_dict().keys()


def test_what_is_set_beside_the_constructor_comes_back():
    quantizer = MinMax(4, percentile=99.5, of_weight=True)
    assert plain_settings(quantizer).keys() == {"kind", "name", "settings"}
    quantizer.ewgs, quantizer.padding = 0.001, 3
    again = through_json(quantizer)
    assert (again.ewgs, again.padding, again.percentile) == (0.001, 3, 99.5)


def test_classes_of_others_are_found_by_name():
    own = Padded(3, margin=0.5, groups=(4, 5), of_weight=True)
    assert plain_settings(own)["kind"] == "support.own_quantizers:Padded"
    assert type(through_json(own)) is Padded and through_json(own).margin == 0.5
    held = Held(3, levels=6, signed=True)
    assert type(through_json(held)) is Held and through_json(held).held_levels == 6


def test_what_cannot_be_described_is_named():
    def named(quantizer):
        quantizer.name = "fc"
        return quantizer

    with pytest.raises(ValueError, match=r"fc, Hidden: .*support\.own_quantizers:hidden\.<locals>\.Hidden"):
        plain_settings(named(hidden()(3)))
    with pytest.raises(ValueError, match=r"fc, Calling: margin is <function"):
        plain_settings(named(Calling(3, margin=lambda: 1)))
    with pytest.raises(ValueError, match="fc, Padded: groups is "):
        plain_settings(named(Padded(3, groups={1: 2})))
    with pytest.raises(ValueError, match=r"fc, Doubling: margin is 2\.0 .* 4\.0"):
        plain_settings(named(Doubling(3)))


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ("lsq", "a quantizer is 'lsq'"),
        ({"kind": "lsq", "name": "fc"}, "kind, name and settings"),
        ({"kind": "lsq", "name": "fc", "settings": {}, "bits": 3}, "'bits': 3"),
        ({"kind": 3, "name": "fc", "settings": {}}, "'kind': 3"),
        ({"kind": "lsp", "name": "fc", "settings": {"bits": 3}}, "'lsp'; did you mean lsq"),
        ({"kind": "own.py:Own", "name": "fc", "settings": {"bits": 3}}, r"'own\.py:Own'"),
        ({"kind": "json:JSONDecoder", "name": "fc", "settings": {}}, "'json:JSONDecoder'.*JSONDecoder"),
        ({"kind": "lsq", "name": "fc", "settings": {"bits": 3, "margin": 1}}, "fc: lsq .*margin"),
        ({"kind": "lsq", "name": "fc", "settings": {"bits": 33}}, "bits is 33"),
    ],
)
def test_a_form_that_is_wrong_is_refused(form, message):
    with pytest.raises(ValueError, match=message):
        made(form)


def test_a_script_has_no_name_that_another_program_could_import(monkeypatch):
    kind = type("Mine", (LSQ,), {"__module__": "__main__"})
    with pytest.raises(ValueError, match="__main__:Mine"):
        plain_settings(kind(3))
