"""Arms compared: intervals by Student's t, pairs by seed, and the forms in which a comparison is written."""

import csv
import io
import json
import math

import pytest

from spequant.comparison import compare, deviation, paired

pytest.importorskip("scipy", reason="intervals need the extra report")
ARMS = {"Retrain": {0: 75.0, 1: 74.0, 2: 76.0}, "SPEQ & KD": {0: 75.5, 1: 74.7, 2: 76.6}, "one_seed": {2: 77.0}}


def test_differences_are_paired_by_seed():
    retrain, speq, one = compare(ARMS, figure="test accuracy, %").arms
    assert (retrain.mean, retrain.deviation, retrain.difference, retrain.interval) == (75.0, 1.0, None, None)
    assert speq.difference == pytest.approx(0.6) and speq.pairs == 3
    # Student's t for 2 degrees of freedom is 4.3027 in every table; the differences .5, .7, .6 deviate by .1
    assert speq.interval == pytest.approx(4.3027 * 0.1 / math.sqrt(3), rel=1e-4)
    assert (one.deviation, one.difference, one.interval, one.pairs) == (None, 1.0, None, 1)
    assert (retrain.in_words(), speq.in_words(), one.in_words()) == ("", "+0.60 ± 0.25 (3 pairs)", "+1.00 (1 pair)")
    (_, apart) = compare({"a": {0: 1.0}, "b": {1: 2.0}}).arms
    assert (apart.difference, apart.pairs, apart.in_words()) == (None, 0, "no seed in common")


def test_paired_difference():
    a, b = {0: 1.0, 1: 2.0, 2: 3.0}, {0: 2.0, 1: 2.5, 2: 4.5, 7: 9.0}
    gap, half, pairs = paired(a, b)
    assert (gap, pairs) == (1.0, 3) and half == pytest.approx(4.302653 * 0.5 / 3**0.5, rel=1e-6)
    many = {seed: float(seed) for seed in range(25)}
    _, half, _ = paired({seed: 0.0 for seed in many}, many)
    assert half == pytest.approx(2.0638986 * deviation(list(many.values())) / 5, rel=1e-6)
    assert deviation([1.0, 3.0]) == pytest.approx(2**0.5)
    assert math.isnan(deviation([1.0]))


def test_equal_arms_differ_by_nothing():
    gap, half, pairs = paired({0: 1.0, 1: 2.0}, {1: 2.0, 0: 1.0})
    assert (gap, pairs) == (0.0, 2) and half == 0.0
    comparison = compare({"a": {0: 1.0, 1: 2.0}, "b": {0: 1.0 - 1e-9, 1: 2.0}})
    assert "+0.00" in str(comparison) and "+0.00" in comparison.latex()


def test_every_form_has_every_number(tmp_path):
    comparison = compare(ARMS, figure="test accuracy, %")
    rows = list(csv.DictReader(io.StringIO(comparison.csv())))
    again: dict[str, dict[int, float]] = {}
    for row in rows:
        again.setdefault(row["arm"], {})[int(row["seed"])] = float(row["value"])
    assert again == ARMS
    content = json.loads(comparison.json())
    assert content["figure"] == "test accuracy, %" and content["arms"][1]["difference"] == pytest.approx(0.6)
    assert content["arms"][2]["interval"] is None
    latex = comparison.latex()
    assert r"SPEQ \& KD & 3 & $75.60 \pm 0.95$ & $+0.60 \pm 0.25$ \\" in latex
    assert r"one\_seed" in latex and r"test accuracy, \%" in latex and latex.count(r"\\") == 4
    text = str(comparison).splitlines()
    assert len(text) == 5 and text[2].endswith("+0.60 ± 0.25 (3 pairs)")


def test_seeds_without_a_partner_are_named_in_every_form():
    comparison = compare({"a": {0: 1.0, 1: 2.0}, "b": {1: 2.0, 5: 3.0, 7: 3.0}}, better="lower")
    notes = ["not paired: seeds 5, 7 of b, without a run of a", "not paired: seed 0 of a, without a run of b"]
    assert list(comparison.notes) == notes == str(comparison).splitlines()[3:]
    assert [line.removeprefix("% ") for line in comparison.latex().splitlines()[:2]] == notes
    content = json.loads(comparison.json())
    assert content["notes"] == notes and content["better"] == "lower"
    assert (content["arms"][1]["unpaired"], content["arms"][1]["absent"]) == ([5, 7], [0])
    assert "value (lower is better)" in comparison.latex() and "value (lower is better)" in str(comparison)


@pytest.fixture
def drawn(monkeypatch):
    """The figures that are saved, which are not written."""
    figures, saved = pytest.importorskip("matplotlib.figure", reason="pictures need the extra report"), []
    monkeypatch.setattr(figures.Figure, "savefig", lambda figure, path, **options: saved.append(figure))
    return saved


def texts(axes) -> list[str]:
    return [text.get_text() for text in axes.texts if text.get_text()]


def test_a_picture_shows_all_seeds_and_names_what_is_far_away(tmp_path, drawn):
    compare({**ARMS, "broken": {0: 10.0, 1: 11.0}, "two": {0: 75.0, 1: 77.0}}).plot(tmp_path / "c.png")
    left, right = drawn[0].axes
    low, high = left.get_xlim()
    assert low < 74.0 and 77.0 < high < 80 and low > 60  # the interval of two seeds is 25 wide, and cut
    assert texts(left) == ["\u2190 10.50"] and texts(right) == ["\u2190 -64.00"]
    assert {x for line in left.lines for x in line.get_xdata()} >= {x for arm in ARMS.values() for x in arm.values()}
    assert right.get_xlim()[0] < 0.0  # where there is no difference
    compare({**ARMS, "one collapsed": {0: 10.0, 1: 75.0}}).plot(tmp_path / "c.png")
    left, right = drawn[1].axes
    assert texts(left) == ["\u2190 10.00"] and texts(right) == ["\u2190 -65.00"]


def test_a_picture_says_its_seeds_and_what_is_not_paired(tmp_path, drawn):
    compare({**ARMS, "other": {7: 75.0, 8: 76.0}}, better="higher").plot(tmp_path / "c.png")
    left, right = drawn[0].axes
    labels = [label.get_text() for label in left.get_yticklabels()]
    assert labels == ["Retrain (3 seeds)", "SPEQ & KD (3 seeds)", "one_seed (1 seed)", "other (2 seeds, 0 paired)"]
    assert "higher is better" in left.get_xlabel() and "hollow: not paired" in left.get_xlabel()
    assert texts(right) == ["no seed in common"]
    compare({"a": {0: 1.0}}).plot(tmp_path / "c.png")
    (alone,) = drawn[1].axes
    assert "one seed, no interval" in alone.get_xlabel()


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({}, "values is empty"),
        ({"a": {}}, "'a'"),
        ({"a": [1.0, 2.0]}, "'a'"),
        ({"a": {0: 1.0}, "b": {3: math.nan}}, "nan for 'b', seed 3"),
    ],
)
def test_what_cannot_be_compared_is_named(values, named):
    with pytest.raises(ValueError, match=named):
        compare(values)


def test_better_is_one_of_two_words():
    with pytest.raises(ValueError, match="better is 'more'"):
        compare(ARMS, better="more")
