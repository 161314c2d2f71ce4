"""Recipes on images: which images of a set, what is refused, mixed images in training, runs on a folder of files."""

import json
import signal
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from spequant.app.cli import main
from spequant.app.recipes import RECIPES
from spequant.app.recipes.choices import DATA
from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.readiness import check_ready
from spequant.app.recipes.recipe import Network, Recipe
from spequant.app.recipes.serial import from_json, to_json
from spequant.app.recipes.training import Training
from spequant.app.runs import evaluate_source, export_source, run
from spequant.app.runs.estimate import dry_run
from spequant.app.runs.reporter import Quiet
from spequant.app.runs.sources import load_run
from spequant.app.runs.weights import build_network
from spequant.calibration.batch_norm import reestimate_batch_norm
from spequant.data import Folder, eval_batches, train_batches
from spequant.methods import SPEQ, Retrain
from spequant.methods.tasks import Classification
from spequant.models import make_network
from spequant.train import Interrupted, evaluate, make_accelerator, train_step
from support.assembled import assembled
from support.image_folders import fill

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    pytest.importorskip("timm")
    return fill(tmp_path_factory.mktemp("images"))


def on_digits(name="digits-w2a2-speq", **data):
    made = RECIPES[name]()
    train = replace(made.train, precision="fp32", compile=False, device="cpu", accumulate=2, label_smoothing=0.1)
    quant = replace(made.quant, percentile=99.9) if made.quantized else made.quant
    network = replace(made.network, weights=None)
    return replace(made, train=train, data=replace(made.data, **data), network=network, quant=quant)


def on_folder(root, **data):
    return Recipe(
        name="tiny",
        data=Folder(root=root, held_out=3, size=16, workers=0, crop_scale=0.5, **data),
        network=Network(name="resnet8"),
        quant=Quantization(weight_bits=None, act_bits=None),
        method=Retrain.Settings(),
        train=Training(epochs=2, batch_size=8, precision="fp32", compile=False, device="cpu"),
    )


# ---- recipes


@pytest.mark.parametrize("name", [n for n in RECIPES if n.startswith(("imagenet", "transfer", "flowers"))])
def test_a_recipe_for_larger_images_prepares_its_network(name):
    recipe = RECIPES[name]()
    if name.startswith("transfer"):
        with pytest.raises(ValueError, match=r"network\.new_head is True.*--network\.weights RUN"):
            check_ready(recipe)  # its weights are to be given
        recipe = replace(recipe, network=replace(recipe.network, weights=Path("given")))
    check_ready(recipe)
    assert from_json(to_json(recipe)) == recipe
    network = make_network(recipe.network.name, classes=4)
    model = recipe.quant.build(network)
    assert (model is network) == (not recipe.quantized)


def test_weights_of_another_head_name_both_numbers(root, tmp_path):
    train, _, _ = Folder(root=root, held_out=0, size=16, workers=0).parts("resnet8", CPU)
    torch.save(
        build_network(Network(name="resnet8"), replace(train, classes=7, names=None)).state_dict(),
        tmp_path / "seven.pt",
    )
    with pytest.raises(ValueError, match=r"(?s)seven\.pt does not fit.*\[7.*\[3.*3 classes"):
        build_network(Network(name="resnet8", weights=tmp_path / "seven.pt"), train)


def test_a_run_with_a_new_head_is_opened_without_what_it_started_from(tmp_path):
    weights = tmp_path / "weights.safetensors"
    save_file(make_network("resnet8", classes=7, in_channels=1).state_dict(), weights)
    recipe = on_digits(images=256, held_out=0)
    recipe = replace(recipe, network=Network(name="resnet8", weights=weights), train=replace(recipe.train, epochs=1))
    with pytest.raises(ValueError, match=r"10 classes.*--network\.new-head"):
        run(recipe, tmp_path / "without")
    result = run(replace(recipe, network=replace(recipe.network, new_head=True)), tmp_path / "run")
    weights.unlink()
    (row,) = evaluate_source(tmp_path / "run")
    assert row["accuracy"] == pytest.approx(result["test_accuracy"])
    export_source(tmp_path / "run", "packed", images=32)
    (row,) = evaluate_source(tmp_path / "run/model.packed")
    assert row["accuracy"] == pytest.approx(result["test_accuracy"])


# ---- mixed images


def test_sets_in_memory_are_mixed_in_training_alone_and_the_same_for_teacher_and_student(tmp_path, monkeypatch):
    pytest.importorskip("timm")
    mixed = on_digits(mixup=0.3, cutmix=1.0)
    plain = replace(mixed, data=replace(mixed.data, mixup=0.0, cutmix=0.0), train=on_digits().train)
    made, other = (assembled(one, tmp_path) for one in (mixed, plain))
    for a, b in zip(made.state.model.state_dict().values(), other.state.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)  # calibrated on the same images
    first = list(islice(made.field.batches(0, 0), 4))
    assert first[0][1].shape == (64, 10) and not torch.equal(first[0][0], next(other.field.batches(0, 0))[0])
    for (x, y), (x2, y2) in zip(first[2:], islice(made.field.batches(0, 2), 2), strict=True):
        assert torch.equal(x, x2) and torch.equal(y, y2)
    seen = []
    logits = Classification.logits
    monkeypatch.setattr(
        Classification, "logits", lambda self, model, part: (seen.append(part[0]), logits(self, model, part))[1]
    )
    made.state.wrapped.train()
    sums = train_step(made.state, first[0], made.accelerator)
    assert len(seen) == 4 and seen[0] is seen[1] and seen[2] is seen[3]  # teacher and student, of two parts
    assert sums.isfinite().all() and 0 <= float(sums[3]) <= 64


def test_hits_on_soft_labels_are_those_of_their_largest(tmp_path):
    def hits(smoothing):
        one = on_digits("digits-float")
        one = replace(one, train=replace(one.train, label_smoothing=smoothing, lr=1e-6))
        made = assembled(one, tmp_path)
        made.state.wrapped.train()
        return float(train_step(made.state, next(iter(made.field.batches(0, 0))), make_accelerator())[3])

    assert hits(0.0) == hits(0.2)


# ---- runs on a folder


def test_a_run_on_a_folder(root, tmp_path):
    result = run(on_folder(root), tmp_path / "run")
    assert 0 <= result["test_accuracy"] <= 100 and 0 <= result["held_out_accuracy"] <= 100
    _, model, test = load_run(tmp_path / "run")
    assert round(evaluate(model, eval_batches(test, 5)).accuracy, 4) == round(result["test_accuracy"], 4)
    again = run(on_folder(root), tmp_path / "again")
    assert {k: v for k, v in again.items() if k != "seconds"} == {k: v for k, v in result.items() if k != "seconds"}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_that_is_interrupted_within_an_epoch_goes_on_to_equal_weights(root, tmp_path, workers):
    mixed = on_folder(root, mixup=0.4)
    mixed = replace(mixed, train=replace(mixed.train, batch_size=4, checkpoint_every=2))

    class Stopping(Quiet):
        def step(self, progress):
            if progress.epoch == 1 and progress.step == 3:
                signal.raise_signal(signal.SIGINT)

    run(mixed, tmp_path / "whole")
    with warnings.catch_warnings():  # fewer CPUs than workers
        warnings.simplefilter("ignore", UserWarning)
        with pytest.raises(Interrupted, match="after step 9"):
            run(mixed, tmp_path / "stopped", Stopping())
        run(replace(mixed, data=replace(mixed.data, workers=workers)), tmp_path / "stopped", resume=True)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_an_estimate_of_a_run_on_a_folder(root):
    found = dry_run(on_folder(root))
    assert (found.samples, found.steps) == ((27, 3, 12), 6)
    assert found.step_seconds > 0


def test_speq_on_a_folder_with_mixed_images(root, tmp_path):
    mixed = replace(on_folder(root, mixup=0.2, cutmix=1.0), quant=Quantization(percentile=99.9), method=SPEQ.Settings())
    mixed = replace(mixed, train=replace(mixed.train, label_smoothing=0.1))
    assert run(mixed, tmp_path / "run")["weight_bytes"] > 0
    assert "mixup" in (tmp_path / "run/recipe.json").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [name for name in RECIPES if name.startswith("imagenet-")])
def test_imagenets_recipes_train_on_its_classes_at_hand(name, tiny_imagenet, tmp_path):
    """From a float network of a few steps in place of the published one, which is fetched. Random weights do not do: in
    EfficientNet's last stage running statistics and those of a batch are worlds apart, and ranges follow the former."""
    data = Folder(root=tiny_imagenet, size=64, images=128, workers=0, held_out=0)
    train, _, _ = data.parts("resnet18", CPU)
    network = make_network(RECIPES[name]().network.name, classes=10, size=64)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(5):
        for x, y in train_batches(train, 32, seed=1, epoch=epoch, augment=data.augmentation(train)):
            optimizer.zero_grad()
            F.cross_entropy(network(x), y).backward()
            optimizer.step()
    augmented = train_batches(train, 32, seed=0, epoch=0, augment=data.augmentation(train))
    reestimate_batch_norm(network, [x for x, _ in augmented])
    save_file(network.state_dict(), tmp_path / "float.safetensors")
    small = {"data.size": 64, "data.images": 128, "data.workers": 0, "train.epochs": 1}
    small |= {"train.batch-size": 32, "train.lr": 0.005, "train.clip-norm": 1.0}  # an eighth; so young, it may diverge
    words = [word for key, value in small.items() for word in (f"--{key}", str(value))]
    words += ["--network.weights", str(tmp_path / "float.safetensors"), "--network.no-pretrained"]
    off = ["--train.no-compile", "--train.precision", "fp32"]
    main(["train", name, "--data.root", str(tiny_imagenet), *words, *off, "--out", str(tmp_path / "run")])
    result = json.loads((tmp_path / "run/result.json").read_text())
    assert 0 <= result["test_accuracy"] <= 100 and result["weight_bytes"] > 0
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    (epoch,) = [row for row in rows if row["kind"] == "epoch"]
    assert -1e-6 < epoch["distill"] <= 1 and epoch["loss"] < 6  # 1 - a cosine, and chance is 2.3


OWN = """
import torch
from torch import nn
from spequant.data import ImageSet


class Net(nn.Sequential):
    def __init__(self, classes, dense=False):
        body = nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
        head = [nn.Conv2d(8, classes, 1)] if dense else [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, classes)]
        super().__init__(*body, *head)


def dense(classes):
    return Net(classes, dense=True)


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (96, 3, 8, 8), dtype=torch.uint8, generator=generator)


def pair(labels, classes):
    whole = ImageSet(images(), labels, (0.5,) * 3, (0.25,) * 3, classes)
    return whole.part(slice(0, 64)), whole.part(slice(64, 96))


def values():
    return pair(images().float().mean((2, 3))[:, :2] / 10, 2)


def marks():
    return pair((images().float().mean((2, 3)) > 127.5).long(), 3)


def masks():
    return pair((images()[:, 0] > 127).to(torch.uint8), 2)
"""
FIGURES = {
    "regression": {"test_mean_absolute_error", "test_r2"},
    "multi-label": {"test_f1", "test_accuracy"},
    "segmentation": {"test_mean_iou", "test_pixel_accuracy"},
}


def with_own_targets(folder, task, **changes):
    (folder / "mine.py").write_text(OWN)
    data = {"regression": "values", "multi-label": "marks", "segmentation": "masks"}[task]
    recipe = replace(
        on_folder(folder),
        data=DATA.named(f"{folder / 'mine.py'}:{data}")(held_out=16),
        network=Network(name=f"{folder / 'mine.py'}:{'dense' if task == 'segmentation' else 'Net'}"),
        task=task,
    )
    return replace(recipe, **changes)


@pytest.mark.parametrize(
    "task", ["regression", *(pytest.param(task, marks=pytest.mark.slow) for task in ("multi-label", "segmentation"))]
)
def test_a_set_of_ones_own_with_other_targets_is_trained_measured_and_exported(task, tmp_path, capsys):
    floating = run(with_own_targets(tmp_path, task), tmp_path / "float")
    assert {name for name in floating if name.startswith("test_")} == FIGURES[task]
    recipe = with_own_targets(
        tmp_path,
        task,
        quant=Quantization(weight_bits=4, act_bits=4, percentile=99.9),
        method=SPEQ.Settings(),
        network=replace(with_own_targets(tmp_path, task).network, weights=tmp_path / "float"),
    )
    result = run(recipe, tmp_path / "low-bit")
    rows = [json.loads(line) for line in (tmp_path / "low-bit" / "metrics.jsonl").read_text().splitlines()]
    epochs = [row for row in rows if row["kind"] == "epoch"]
    assert all(row["distill"] >= 0 and ("train_accuracy" in row) == (task != "regression") for row in epochs)
    assert all(name.replace("test_", "held_out_") in epochs[-1] for name in FIGURES[task])
    export_source(tmp_path / "low-bit", "packed")
    for source in ("low-bit", "low-bit/model.packed"):
        (row,) = evaluate_source(tmp_path / source)
        for name in FIGURES[task]:
            assert row[name.removeprefix("test_")] == pytest.approx(result[name], rel=1e-3)
        main(["evaluate", str(tmp_path / source)])
        printed = capsys.readouterr().out
        assert all(name.removeprefix("test_").replace("_", " ") in printed for name in FIGURES[task])
    main(["runs", str(tmp_path)])
    assert "finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"task": None}, "Other tasks are Regression"),
        ({"train": Training(label_smoothing=0.1, epochs=1, batch_size=8, precision="fp32", device="cpu")}, "smoothed"),
    ],
)
def test_targets_that_a_task_or_mixing_does_not_fit_are_named(changes, named, tmp_path):
    recipe = with_own_targets(tmp_path, "regression")
    with pytest.raises(ValueError, match=named):
        run(replace(recipe, **changes), tmp_path / "run")
