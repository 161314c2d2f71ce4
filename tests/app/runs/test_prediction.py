"""Answers for image files: those of the network on the test set's own images; what is missing is named."""

from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.app.runs import load_run, predict_source
from spequant.app.runs.prediction import configured
from spequant.data import Configuration
from support.exported_run import exported
from support.image_folders import needs_timm
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered

Image = pytest.importorskip("PIL.Image")
pytestmark = needs_timm


@pytest.fixture(scope="module")
def digits(digits_run, tmp_path_factory):
    """A folder with forty images of the digits' test set, and the network's probabilities on them."""
    folder = tmp_path_factory.mktemp("digits")
    _, model, test = load_run(digits_run, device="cpu")
    for i, pixels in enumerate(test.images[:40]):
        Image.fromarray(pixels[0].numpy()).save(folder / f"{i:02}.png")
    with torch.no_grad():
        return folder, model.eval()(test.normalise(test.images[:40])).double().softmax(1)


def test_the_answers_are_the_networks(digits, digits_run):
    folder, expected = digits
    for source in (digits_run, exported(digits_run, "packed")):
        got = predict_source(source, [folder], top=2)
        assert got.names == tuple("0123456789") and not got.faults and len(got.answers) == 40
        shares, classes = expected.sort(dim=1, descending=True)
        assert [a.classes for a in got.answers] == [tuple(row) for row in classes[:, :2].tolist()]
        assert torch.tensor([a.probabilities for a in got.answers]).allclose(shares[:, :2].float(), atol=1e-5)
    (answer,) = predict_source(digits_run, [folder / "00.png"], top=99).answers
    assert len(answer.classes) == 10 and sum(answer.probabilities) == pytest.approx(1)


def test_the_others_are_answered_where_some_cannot_be(digits, digits_run, tmp_path):
    (tmp_path / "damaged.png").write_text("no image")
    images = [digits[0] / "03.png", tmp_path / "damaged.png", tmp_path / "absent.png", tmp_path / "*.jpg"]
    got = predict_source(digits_run, images)
    assert [answer.image for answer in got.answers] == [str(images[0])]
    assert got.faults.keys() == {str(path) for path in images[1:]}
    nothing = predict_source(digits_run, images[1:])
    assert nothing.answers == () and len(nothing.faults) == 3


NETWORK = "support.integer_networks:small"


def test_a_file_that_was_made_in_python_is_told_how_images_become_inputs(digits, tmp_path):
    case, image = lowered("two bits"), digits[0] / "00.png"
    spequant.export(case.model, tmp_path / "bare.packed", [case.x])
    with pytest.raises(ValueError, match=r"bare\.packed .*give --mean, --std, --size, --crop-pct, or .*about="):
        predict_source(tmp_path / "bare.packed", [image], network=NETWORK)
    with pytest.raises(ValueError, match=r"bare\.packed .*give --network"):
        predict_source(tmp_path / "bare.packed", [image])
    told = predict_source(
        tmp_path / "bare.packed", [image], network=NETWORK, size=8, mean=(0.3,), std=(0.4,), crop_pct=1.0
    )
    about = {"images": asdict(Configuration((0.3,), (0.4,), crop_pct=1.0, size=8))}
    spequant.export(case.model, tmp_path / "net.packed", [case.x], classes=list("abcdefghij"), about=about)
    known = predict_source(tmp_path / "net.packed", [image], network=NETWORK)
    assert known.names == tuple("abcdefghij") and told.names is None
    assert known.answers == told.answers


@pytest.mark.slow
@NEEDS_ONNXRUNTIME
def test_graphs_that_were_made_in_python_say_their_size_and_perhaps_their_normalisation(digits, tmp_path):
    case, image = lowered("two bits"), digits[0] / "00.png"
    spequant.export(case.model, tmp_path / "bare.onnx", [case.x])
    with pytest.raises(ValueError, match=r"bare\.onnx .*give --mean, --std, --crop-pct, or .*about="):
        predict_source(tmp_path / "bare.onnx", [image])
    told = predict_source(tmp_path / "bare.onnx", [image], mean=(0.3,), std=(0.4,), crop_pct=1.0)
    pixels = torch.from_numpy(np.array(Image.open(image)))[None, None]
    images = torch.cat([pixels, torch.randint(0, 256, (15, 1, 8, 8), dtype=torch.uint8)])
    spequant.export(case.model, tmp_path / "pixels.onnx", [images], preprocessing=((0.3,), (0.4,)))
    within = predict_source(tmp_path / "pixels.onnx", [image], crop_pct=1.0)
    assert within.answers[0].probabilities == pytest.approx(told.answers[0].probabilities, abs=1e-3)
    with pytest.raises(ValueError, match=r"mean or std .*pixels\.onnx takes uint8"):
        predict_source(tmp_path / "pixels.onnx", [image], crop_pct=1.0, mean=(0.5,))


@pytest.mark.parametrize(
    ("how", "named"),
    [
        ({"top": 0}, "top is 0"),
        ({"engine": "tflite"}, "engine is 'tflite'"),
        ({"size": 0}, "size is 0"),
        ({"std": (0.0,)}, r"std \(0\.0,\)"),
        ({"mean": (0.5, 0.5)}, r"mean is \(0\.5, 0\.5\); .* 1, one per channel"),
        ({"images": []}, "no image is named"),
    ],
)
def test_values_out_of_range_are_named(how, named, digits, digits_run):
    with pytest.raises(ValueError, match=named):
        predict_source(digits_run, **{"images": [digits[0]], **how})


def test_options_come_before_what_a_file_says():
    about = {"images": asdict(Configuration(size=32))}
    loaded = SimpleNamespace(about=about, preprocessing=None)
    source = SimpleNamespace(loaded=loaded, shape=(3, 32, 32), path="net.onnx", model=None)
    assert configured(source, {"size": None}) == Configuration(size=32)
    changed = configured(source, {"mean": (0.5,), "interpolation": "bicubic"})
    assert (changed.mean, changed.std, changed.interpolation) == ((0.5,) * 3, Configuration().std, "bicubic")
    source.shape, source.model = None, nn.Sequential(nn.Conv2d(3, 4, 3))
    assert configured(source, {"mean": (0.5,), "std": (0.5,)}).std == (0.5,) * 3
    loaded.about = {"images": {"size": "big"}}
    with pytest.raises(ValueError, match=r"net\.onnx: .*size is 'big'"):
        configured(source, {})
