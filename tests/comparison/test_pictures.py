"""Limits of an axis that outliers do not stretch, and outliers as numbers at its ends."""

import math

import pytest

from spequant.comparison.pictures import DrawnRow, blank, draw_rows, fit_limits, label, save, write_outliers

pytest.importorskip("matplotlib", reason="pictures need the extra report")


@pytest.fixture
def axes():
    return blank(2, 1).subplots()


@pytest.mark.parametrize(
    ("values", "ends", "inside", "outside"),
    [
        ([1.0, 2.0, 3.0], [0.0, 4.0], [0.0, 4.0], [-2.0, 6.0]),
        ([1.0, 2.0, 3.0, 100.0, math.nan], [], [1.0, 3.0], [100.0]),
        ([1.0, 2.0, 3.0], [-9.0, 3.5], [1.0, 3.5], [-9.0]),
        ([5.0, 5.0], [], [5.0], []),
        ([10.0, 90.0], [], [10.0, 90.0], []),
    ],
)
def test_limits_hold_all_but_outliers(axes, values, ends, inside, outside):
    low, high = fit_limits(axes, values, ends)
    assert axes.get_xlim() == (low, high)
    assert all(low < x < high for x in inside) and not any(low < x < high for x in outside)


def test_limits_of_a_logarithmic_axis(axes):
    axes.set_yscale("log")
    low, high = fit_limits(axes, [0.01, 0.1, 1.0, 1e30, 0.0], along="y")
    assert 0 < low < 0.01 and 1.0 < high < 10
    assert fit_limits(axes, [math.nan], along="y") == (-math.inf, math.inf)


def test_outliers_are_written_at_their_end(axes):
    write_outliers(axes, 0, [1.0, 5.0, -3.0, *range(20, 25)], (0.0, 9.0), "x", 1)
    write_outliers(axes, 0, [1.0, 50.0], (0.0, 9.0), "y", 0)
    assert [text.get_text() for text in axes.texts] == [
        "\u2190 -3.0",
        "20.0, 21.0, 22.0, 2 more \u2192",
        "50 \u2191",
    ]


def test_an_interval_that_is_cut_ends_in_an_arrow(axes):
    draw_rows(axes, [DrawnRow([1.0, 2.0, 3.0], 2.0, 1.0), DrawnRow([1.0, 2.0], 1.5, 40.0), DrawnRow()])
    assert [line.get_marker() for line in axes.lines if line.get_marker() in "<>"] == ["<", ">"]


def test_long_labels_are_broken_between_words():
    assert (
        label("a-name-of-its-own quant.weight_bits=3 (3 seeds)") == "a-name-of-its-own\nquant.weight_bits=3 (3 seeds)"
    )


def test_a_picture_is_written(tmp_path):
    content = save(blank(1, 1), tmp_path / "p.png")
    assert content == (tmp_path / "p.png").read_bytes() and content.startswith(b"\x89PNG")
