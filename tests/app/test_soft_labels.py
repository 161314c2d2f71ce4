"""The command soft-labels, and runs that read its file: the same crops, resumed to equal weights."""

import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from spequant.app.cli import main
from spequant.app.recipes import RECIPES
from spequant.app.recipes.recipe import Network
from spequant.app.runs import run
from spequant.app.runs.images import Images
from spequant.app.runs.reporter import Quiet
from spequant.app.runs.weights import build_network
from spequant.data import FashionMNIST
from spequant.methods import SPEQ, Distill, SPEQDistill
from spequant.train import Interrupted
from support.image_folders import fill, needs_timm

WORDS = ["--data.images", "96", "--data.held-out", "0", "--data.augment", "--slots", "2"]
SMALL = {"images": 96, "held_out": 0, "augment": True}


@pytest.fixture(scope="module")
def made(digits_run, tmp_path_factory):
    """(file, float run)"""
    file, run_folder = tmp_path_factory.mktemp("labels") / "labels", digits_run.parent / "digits-float"
    main(["soft-labels", str(run_folder), *WORDS, "--train.seed", "3", "--out", str(file)])
    return file, run_folder


def recipe_of(made, method=None, **data):
    file, run_folder = made
    recipe = RECIPES["digits-w2a2-speq"]()
    method = method or SPEQDistill.Settings(distill=Distill.Settings(soft_labels=file))
    train = replace(recipe.train, epochs=2, batch_size=32, label_smoothing=0.1, device="cpu")
    data = replace(recipe.data, **{**SMALL, **data})
    return replace(recipe, data=data, network=Network(name="resnet8", weights=run_folder), method=method, train=train)


def test_the_float_network_answers_the_very_crops(made):
    images = Images(recipe_of(made), torch.device("cpu"))
    teacher = build_network(recipe_of(made).network, images.train).eval()
    for epoch in (0, 3):
        x, labels, answers = next(images.batches(epoch, 1))
        assert labels.shape == answers.shape == (32, 10)
        shares = [torch.softmax(z.detach(), -1) for z in (answers, teacher(x))]
        torch.testing.assert_close(*shares, rtol=0, atol=2 / 255)


@pytest.mark.slow
def test_a_run_that_is_interrupted_goes_on_to_equal_weights(made, tmp_path):
    class Stopping(Quiet):
        def step(self, progress):
            if progress.epoch == 1 and progress.step == 2:
                signal.raise_signal(signal.SIGINT)

    run(recipe_of(made), tmp_path / "whole")
    with pytest.raises(Interrupted, match="step 5"):
        run(recipe_of(made), tmp_path / "stopped", Stopping())
    kept = made[0].read_bytes()
    main(["soft-labels", str(made[1]), *WORDS, "--train.seed", "4", "--out", str(made[0])])
    with pytest.raises(ValueError, match=r"soft_labels has digest \w+, expected \w+"):
        run(recipe_of(made), tmp_path / "stopped", resume=True)
    made[0].write_bytes(kept)
    run(recipe_of(made), tmp_path / "stopped", resume=True)
    whole, resumed = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "stopped"))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@needs_timm
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # fewer CPUs than workers
def test_a_folder_of_images_is_learned_from_with_any_number_of_workers(tmp_path):
    root = fill(tmp_path / "images", train=12)
    words = ["--data.root", str(root), "--data.size", "16", "--network.name", "resnet8"]
    off = ["--train.no-compile", "--train.batch-size", "8", "--train.epochs", "1", "--train.device", "cpu"]
    start = ["transfer-resnet20-float", *words, *off, "--network.no-new-head"]
    main(["train", *start, "--out", str(tmp_path / "float")])
    file = str(tmp_path / "labels")
    main(["soft-labels", str(tmp_path / "float"), "--data.workers", "2", "--out", file])
    low = ["transfer-resnet20-w4a4-retrain", *words, *off, "--network.no-new-head", "--method", "distill"]
    low += ["--network.weights", str(tmp_path / "float"), "--method.soft-labels", file]
    for workers in ("0", "2"):
        main(["train", *low, "--data.workers", workers, "--out", str(tmp_path / workers)])
    one, other = (load_file(tmp_path / workers / "model.safetensors") for workers in ("0", "2"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    with pytest.raises(SystemExit, match=r"augment is RandomCrop\(scale=0.35"):
        main(["train", *low, "--data.crop-scale", "0.5", "--out", str(tmp_path / "other")])


def test_what_the_command_says(made, tmp_path, capsys):
    words = ["soft-labels", str(made[1]), "--out", str(tmp_path / "labels"), "--temperature", "4", "--top", "3"]
    main([*words, "--data.images", "64", "--data.held-out", "0"])
    said = capsys.readouterr().out
    assert "1 x 64 crops, top 3" in said and "KL lost" in said and "--method.temperature 4" in said
    assert f"{(tmp_path / 'labels').stat().st_size:,} bytes" in said


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["{low}"], "low-bit run"),
        (["absent/digits-float"], r"recipe.json does not exist.*spequant train digits-float"),
        (["digits-float"], "network.weights is not set"),
        (["squad-bert-w3a3-distill", "--network.weights", "{float}"], "data are Squad"),
        (["--top", "3"], "no run or recipe"),
        (["{float}", "--top", "11"], "top is 11"),
    ],
)
def test_what_the_command_refuses(words, named, digits_run, tmp_path):
    words = [word.format(low=digits_run, float=digits_run.parent / "digits-float") for word in words]
    with pytest.raises(SystemExit, match=named):
        main(["soft-labels", *words, *(["--out", str(tmp_path / "labels")] if "{" not in words[0] else [])])


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"augment": False}, "augment is Augment.*, expected None"),
        ({"images": 90}, "images is 96, expected 90"),
        ({"method": Distill.Settings(temperature=2.0)}, "temperature is 2 and .* 1;"),
    ],
)
def test_a_run_with_other_crops_or_temperature_is_refused(changes, named, made):
    if "method" in changes:
        changes = {"method": replace(changes["method"], soft_labels=made[0])}
    with pytest.raises(ValueError, match=named):
        Images(recipe_of(made, **changes), torch.device("cpu"))


def test_recipes_without_such_crops_are_refused(made):
    method = Distill.Settings(soft_labels=made[0])
    with pytest.raises(ValueError, match=r"soft_labels is .*mixup"):
        recipe_of(made, method, mixup=0.2)
    with pytest.raises(ValueError, match=r"soft_labels is .*multi-label"):
        replace(recipe_of(made, method), task="multi-label")
    assert replace(recipe_of(made, SPEQ.Settings()), data=FashionMNIST(mixup=0.2)).method.soft_labels_file is None
