"""Recipes carried out: each field arrives where it works, a run's folder is its own, and what a run would take."""

import re
from dataclasses import replace

import pytest
import torch
from torch import nn

from spequant.app.recipes import RECIPES
from spequant.app.recipes.quantization import Quantization
from spequant.app.runs import dry_run, load_run, run, session
from spequant.app.runs.estimate import Estimate
from spequant.app.runs.images import measure
from spequant.calibration.batch_norm import reestimate_batch_norm
from spequant.data import Augment, ImageSet, load_digits, train_batches
from spequant.methods import Distill, by_name
from spequant.models import resnet8
from spequant.quantizers import SAWB, APoT
from spequant.train import SGD
from spequant.train.checkpoint import checkpoints, read
from support.starts import start


def test_a_separate_teacher_comes_from_its_file(tmp_path):
    from safetensors.torch import save_file

    teacher = resnet8(in_channels=1)
    save_file({k: v.clone() for k, v in teacher.state_dict().items()}, tmp_path / "teacher.safetensors")
    settings = Distill.Settings(teacher=tmp_path / "teacher.safetensors")
    made = settings.build(start(resnet8(in_channels=1)))
    assert torch.equal(made.teacher.linear.weight, teacher.linear.weight)


IMAGES = 128
AT_ONCE = Quantization(percentile=99.9)
"""whose ranges are not searched for"""


def trained(folder, **train):
    """A few digits, augmented, from random weights, in four steps."""
    recipe = RECIPES["digits-w2a2-retrain"]()
    recipe = replace(recipe, network=replace(recipe.network, weights=None), quant=AT_ONCE)
    recipe = replace(recipe, data=replace(recipe.data, augment=True, images=IMAGES))
    run(replace(recipe, train=replace(recipe.train, epochs=1, batch_size=32, **train)), folder)
    return load_run(folder)[1]


def whole(augment):
    """All that they are trained on, as one batch."""
    return list(train_batches(load_digits()[0].part(slice(0, IMAGES)), IMAGES, seed=0, epoch=0, augment=augment))


def test_momentum_augmentation_and_batch_norm_measured_anew_take_part(tmp_path, monkeypatch):
    model, without = trained(tmp_path / "run"), trained(tmp_path / "without", optimizer=SGD(momentum=0.0))
    assert not torch.equal(model.conv1.layer.weight, without.conv1.layer.weight)
    seen = []
    monkeypatch.setattr(session, "reestimate_batch_norm", lambda model, batches: seen.extend(batches))
    stale = trained(tmp_path / "stale")
    assert torch.equal(stale.conv1.layer.weight, model.conv1.layer.weight)
    assert not torch.allclose(stale.bn1.running_mean, model.bn1.running_mean, rtol=1e-3)
    ((images, labels),) = whole(None)
    assert torch.equal(seen[0][1], labels) and not torch.equal(seen[0][0], images)  # the same images, augmented


def test_averaged_weights_get_batch_norm_of_their_own(tmp_path):
    model = trained(tmp_path / "run", ema=0.8)
    snapshot, _ = read(checkpoints(tmp_path / "run" / "checkpoints")[-1])
    averaged, last = snapshot.part("ema"), snapshot.part("model")
    assert torch.equal(model.conv1.layer.weight, averaged["conv1.layer.weight"])
    assert not torch.equal(averaged["conv1.layer.weight"], last["conv1.layer.weight"])
    found = model.bn1.running_mean.clone()
    reestimate_batch_norm(model, whole(Augment()))
    torch.testing.assert_close(found, model.bn1.running_mean)
    assert not torch.allclose(found, averaged["bn1.running_mean"], rtol=1e-2)
    assert not torch.allclose(found, last["bn1.running_mean"], rtol=1e-2)


def test_evaluation_runs_on_running_statistics():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(2), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(2))
    model[1].running_mean.copy_(torch.tensor([0.0, 5.0]))
    pixels = torch.tensor([[1, 3], [2, 4]], dtype=torch.uint8)  # batch statistics would call one of them class 1
    data = ImageSet(pixels[..., None, None], torch.tensor([0, 0]), (0.0,) * 2, (1 / 255,) * 2, classes=2)
    assert measure(model.train(), data).accuracy == 100
    assert model.training and torch.equal(model[1].running_mean, torch.tensor([0.0, 5.0]))


def test_what_a_run_would_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES["digits-w2a2-speq"]()
    data = replace(recipe.data, images=100, held_out=50)
    recipe = replace(recipe, data=data, network=replace(recipe.network, weights=None), quant=AT_ONCE)
    found = dry_run(replace(recipe, train=replace(recipe.train, epochs=7, batch_size=16, tracker="tensorboard")))
    assert (found.samples, found.epochs, found.steps, found.processes) == ((100, 50, 500), 7, 7 * 6, 1)
    assert (found.warm, found.timed) == (3, 3)  # of the six steps of an epoch
    assert found.step_seconds > 0 and found.seconds_first > 0 and found.peak_bytes > 2**20
    said = {name: line for line in found.exports for name in line.partition(":")[0].split(", ")}
    assert "in float: layer3.0.relu" in said["--to onnx"] and "between=8" in said["--to onnx"]
    assert "integers throughout" in said["--to c"]
    assert 0 < found.weight_bytes < found.parameters  # a quarter of a byte a weight, most of them
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"train\.epochs is 0; expected 1"):
        dry_run(replace(recipe, train=replace(recipe.train, epochs=0)))


def test_an_estimate_in_hours_and_in_words():
    found = Estimate((1200, 97, 500), 7, 126, 2, 4096, 1024, 72.0, 3, 10, 2.0, 3 * 2**20)
    assert found.hours == pytest.approx((72 + 2 * 126) / 3600) == 0.09
    said = "\n".join(found.lines())
    assert "1200 to train, 97 held out, 500 to test" in said and "126 in 7 epochs, on 2 process" in said
    assert re.search(r"4096 parameters, 1\.0 KiB.*\n.* 3 MiB.*\n.* 2000\.0 ms, median of 10; .* 3 in 72\.0 s", said)


def rival(folder, weights, name: str, weight) -> float:
    """A run of one epoch on 256 digits; its accuracy."""
    recipe = RECIPES["digits-w2a2-speq"]()
    recipe = replace(
        recipe,
        quant=replace(recipe.quant, weight=weight, percentile=99.0),
        network=replace(recipe.network, weights=weights),
        data=replace(recipe.data, images=256),
        method=by_name[name](),
        train=replace(recipe.train, epochs=1, threads=1),
    )
    result = run(recipe, folder)
    assert run(recipe, folder, resume=True) == result  # the recipe is read back, widths and all
    return result["test_accuracy"]


def test_a_whole_run_of_teachers_on_other_quantizers(tmp_path, digits_run):
    """CMT-KD's teachers of 4 and 8 bits, where the student's quantizer does not reach so far."""
    assert rival(tmp_path / "run", digits_run.parent / "digits-float", "cmt-kd", APoT.Settings()) > 60


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in by_name if n not in ("retrain", "speq", "distill", "speq-distill")])
def test_a_whole_run(name, tmp_path, digits_run):
    assert rival(tmp_path / "run", digits_run.parent / "digits-float", name, SAWB.Settings()) > 60
