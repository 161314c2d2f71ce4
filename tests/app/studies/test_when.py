"""When it helps: sizes with the same number of steps, float networks of these images alone, gains by their gap."""

import json

import pytest

from spequant.app.commands.studies import Study
from spequant.app.recipes import RECIPES
from spequant.app.studies.when import float_gap, when
from spequant.app.studies.workshop import Workshop
from support.made_up_runs import Run, finished
from support.study_files import smoke


@pytest.fixture
def run(monkeypatch):
    """Made-up runs, whose float networks have gaps of 30 and 10 points."""
    run = Run()
    monkeypatch.setattr("spequant.app.studies.arms.run", run)
    monkeypatch.setattr("spequant.app.studies.when.float_gap", lambda folder: 30.0 if "float" in folder.name else 10.0)
    monkeypatch.setattr(
        "spequant.app.studies.when.write_soft_labels", lambda recipe, path, reporter, **how: path.write_bytes(b"")
    )
    return run


def recipe_in(folder):
    return json.loads((folder / "recipe.json").read_text())


def test_each_size_gets_the_same_steps_and_a_float_network_of_its_images(run, tmp_path):
    report = when(Workshop("when", Study(out=tmp_path / "study", sizes=(2560, 10240), seeds=(0, 1))))
    recipes = [recipe_in(folder) for folder in run.trained]
    assert {(r["data"]["images"], r["data"]["held_out"]) for r in recipes} == {(2560, 20000), (10240, 20000)}
    floats = [r for r in recipes if r["name"].endswith("-float")]
    assert [(r["data"]["images"], r["train"]["epochs"]) for r in floats] == [(2560, 80), (10240, 20)]
    plain = [r for r in recipes if r["train"]["epochs"] in (80, 20) and r not in floats]
    assert len(plain) == 2 * 2 * 5  # sizes, seeds, arms that are not longer
    files = {r["method"]["soft_labels"] for r in plain if r["method"].get("soft_labels")}
    assert len(files) == 2, "a file per size, of the float network of these images"
    for size, arms in (("2,560 images", 6), ("10,240 images", 6)):
        rows = [row for row in report.rows if row["group"] == size]
        assert len(rows) == arms and rows[0]["arm"] == "Retrain" and rows[0]["float gap"] == 30
    assert {row["epochs"] for row in report.rows} == {80, 107, 20, 27}


def test_some_arms_alone_bring_the_baseline_and_train_no_other_float_network(run, tmp_path):
    settings = Study(out=tmp_path / "study", sizes=(2560, 10240), seeds=(0,), only=("2,560*/SPEQ",))
    report = when(Workshop("when", settings))
    assert [(row["group"], row["arm"]) for row in report.rows] == [
        ("2,560 images", "Retrain"),
        ("2,560 images", "SPEQ"),
    ]
    assert sum(recipe_in(folder)["name"].endswith("-float") for folder in run.trained) == 1


def test_given_weights_have_a_file_of_soft_labels_per_size(run, tmp_path):
    weights = tmp_path / "float.pt"
    weights.touch()
    when(Workshop("when", Study(out=tmp_path / "study", sizes=(2560, 10240), seeds=(0,), weights=weights)))
    files = {recipe_in(folder)["method"].get("soft_labels") for folder in run.trained} - {None}
    assert len(files) == 2


def test_the_whole_study(run, tmp_path):
    rows = smoke("when", tmp_path / "study", "--sizes", "100", "200")
    assert {row["group"] for row in rows} == {"100 images", "200 images"}


def test_the_gap_is_training_minus_held_out_accuracy(tmp_path):
    recipe = RECIPES["cifar10-5k-resnet20-float"]()
    finished(tmp_path, recipe, test_accuracy=60.0, held_out_accuracy=62.5)
    rows = [{"kind": "epoch", "epoch": e, "train_accuracy": accuracy} for e, accuracy in ((1, 50.0), (2, 95.0))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert float_gap(tmp_path) == pytest.approx(32.5)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"sizes": (200, 100)}, "sizes is .*ascending"),
        ({"sizes": ()}, "sizes is"),
        ({"held_out": 0}, "held_out is 0"),
        ({"recipe": "cifar10-resnet20-w2a2-speq"}, "--train-images N"),
        ({"only": ("*/KD", "nowhere/SPEQ")}, "only has 'nowhere/SPEQ'.*2,560 images.*SPEQ and KD"),
    ],
)
def test_what_it_cannot_do_is_refused(settings, said, tmp_path):
    with pytest.raises(ValueError, match=said):
        when(Workshop("when", Study(out=tmp_path / "study", **settings)))
