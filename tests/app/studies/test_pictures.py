"""Lines over several seeds, curves of runs, grids of widths: what they show, and what they say of their seeds."""

import json

import pytest

from spequant.app.studies import pictures
from spequant.comparison.pictures import blank

pytest.importorskip("matplotlib", reason="pictures need the extra report")
pytest.importorskip("scipy", reason="intervals need the extra report")


@pytest.fixture
def axes():
    return blank(3, 2).subplots()


def legend(axes) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


def heights(axes) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axes.lines]


def test_lines_are_means_with_intervals_and_say_their_seeds(axes):
    pictures.draw_lines(axes, {"three": [(2, [1.0, 2.0, 3.0]), (4, [2.0, 2.0, 2.0])], "one": [(2, [1.5]), (4, [1.7])]})
    assert legend(axes) == ["three (3 seeds)", "one (one seed, no interval)"]
    three, one = (container.lines[0] for container in axes.containers)
    assert list(three.get_ydata()) == [2.0, 2.0] and list(one.get_ydata()) == [1.5, 1.7]
    (bars,) = axes.containers[0].lines[2]
    low, high = bars.get_segments()[0][:, 1]
    assert high - low == pytest.approx(2 * 4.3027 * 1 / 3**0.5, rel=1e-4)
    assert not axes.containers[1].lines[2]


def test_an_outlier_is_written_and_squeezes_nothing(axes):
    points = [(bits, [70.0 + bits]) for bits in range(2, 9)]
    pictures.draw_lines(
        axes, {"a": points, "b": [*points[:3], (5, [10.0]), *points[4:]], "c": [(2, [9.0]), (8, [9.5])]}
    )
    assert axes.get_ylim()[0] > 60 and [text.get_text() for text in axes.texts] == [
        "9.0 \u2193",
        "10.0 \u2193",
        "9.5 \u2193",
    ]
    assert legend(axes)[2] == "c (one seed, no interval), outside: 9.5"


def test_curves_are_those_of_the_runs_on_what_is_held_out(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(pictures, "blank", lambda *size: figures.append(blank(*size)) or figures[-1])
    arms = {"one": [tmp_path / "a", tmp_path / "b"], "two": [tmp_path / "c"]}
    for i, folder in enumerate(f for folders in arms.values() for f in folders):
        folder.mkdir()
        rows = [{"kind": "start"}] + [
            {"kind": "epoch", "epoch": e, "task": i + e, "train_accuracy": 100.0, "held_out_accuracy": 50.0 + e + i}
            for e in (1, 2)
        ]
        (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pictures.draw_curves(arms, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    loss, accuracy = figures[0].axes
    assert heights(loss) == [[1, 2], [2, 3], [1.5, 2.5], [3, 4]] and loss.get_yscale() == "log"
    assert heights(accuracy) == [[51, 52], [52, 53], [51.5, 52.5], [53, 54]]
    assert accuracy.get_ylabel() == "held-out accuracy, %"
    assert [line.get_color() for line in loss.lines] == ["C0", "C0", "C0", "C1"]
    assert legend(loss) == ["one (2 seeds)", "two (one seed, no interval)"]
    (tmp_path / "c" / "metrics.jsonl").write_text(json.dumps({"kind": "epoch", "epoch": 1, "task": 1.0}))
    pictures.draw_curves({"two": arms["two"]}, tmp_path / "curves.png")
    assert len(figures[1].axes) == 1  # nothing is held out


@pytest.mark.parametrize(("seeds", "said"), [(3, "mean of 3 seeds"), (1, "one seed, no interval")])
def test_grids_share_one_scale_without_outliers(seeds, said):
    figure = blank(9, 4)
    good = [[[70.0 + a + b for _ in range(seeds)] for b in range(3)] for a in range(3)]
    bad = [[[10.0] * seeds, *good[0][1:]], *good[1:]]
    pictures.draw_grids(figure, {"good": good, "bad": bad}, (2, 4, 8), "accuracy, %")
    left, right, bar = figure.axes
    assert left.images[0].get_clim() == right.images[0].get_clim() == (70.0, 74.0)
    assert right.texts[0].get_text().startswith("10.0") and ("\u00b1" in right.texts[0].get_text()) == (seeds > 1)
    assert said in bar.get_ylabel()


def test_a_grid_of_one_value_has_one_colour():
    figure = blank(9, 4)
    pictures.draw_grids(figure, {"a": [[[100.0]]], "b": [[[100.0]]]}, (2,), "accuracy, %")
    assert [axes.images[0].get_clim() for axes in figure.axes[:2]] == [(99.5, 100.5)] * 2
