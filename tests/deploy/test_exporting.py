"""`export`: a verified file of any format in one call, or none; `load`: every file opened again."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import FORMATS, export, export_onnx, load
from spequant.deploy.engines import ENGINES
from spequant.deploy.exporting import times_fp32
from spequant.deploy.formats import packed
from support.integer_networks import NEEDS_ONNXRUNTIME, prepared, small

pytestmark = NEEDS_ONNXRUNTIME


def test_other_answers_are_refused_and_leave_no_file(tmp_path, monkeypatch):
    x = torch.randn(64, 1, 8, 8)
    model = prepared(small(), x)
    assert spequant.export_onnx(model, tmp_path / "net.onnx", [x]).agreement == 1
    right = ENGINES["onnxruntime"]

    def rolled(source):
        run = right(source)
        return lambda feed: [out if out.dtype == np.uint8 else np.roll(out, 1, 1) for out in run(feed)]

    with monkeypatch.context() as patch:
        patch.setitem(ENGINES, "onnxruntime", rolled)
        with pytest.raises(ValueError, match=r"another arg-max .* 6\d of 64 images"):
            export_onnx(model, tmp_path / "wrong.onnx", [x])
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]
    with pytest.raises(ValueError, match="images hold no sample"):
        export_onnx(model, tmp_path / "wrong.onnx", [])
    with pytest.raises(ValueError, match=r"images have 3 dimensions; .* expected 4"):
        export_onnx(model, tmp_path / "wrong.onnx", [x[:, 0].byte()], preprocessing=((0.5,), (0.5,)))
    with pytest.raises(ValueError, match=r"images are .* expected uint8"):
        export_onnx(model, tmp_path / "wrong.onnx", [x], preprocessing=((0.5,), (0.5,)))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.again = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x):
        return self.again(torch.relu(self.again(torch.relu(self.first(x)))))


def test_of_a_layer_that_is_called_twice_the_calls_are_not_told_apart(tmp_path):
    x = torch.randn(64, 6)
    parity = export_onnx(prepared(Twice(), x), tmp_path / "net.onnx", [x, x[:7], x[:1]])
    assert parity.images == 72 and not any(c.twin for c in parity.codes)
    assert {c.name.split()[0]: c.torch for c in parity.codes}["first"] is None


def test_codes_of_a_layer_that_takes_in_the_zeros_before_it_are_compared_where_they_are_the_same(tmp_path):
    x = torch.randn(16, 1, 4, 4)
    layers = [nn.Identity(), nn.ZeroPad2d(1), nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()]
    parity = export_onnx(prepared(nn.Sequential(*layers, nn.Linear(16, 3)), x), tmp_path / "net.onnx", [x])
    assert {c.name.split()[0]: c.torch for c in parity.codes}["2"] == 0  # which the next layer reads
    assert parity.looked_at == 16 and parity.images == 16


X = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(8) % 10
FORMS = {
    "tensors": ([X], False),
    "alone in a tuple": ([(X,)], False),
    "with labels": ([(X, LABELS)], True),
    "with labels and numbers": ([(X, LABELS, torch.arange(8))], True),
    "as a list": ([[X, LABELS]], True),
    "with other targets": ([(X, torch.randn(8, 4))], False),
    "with masks": ([(X, torch.zeros(8, 8, 8, dtype=torch.int64))], False),
    "arrays": ([(X.numpy(), LABELS.numpy())], True),
    "small integers as labels": ([(X, LABELS.to(torch.uint8))], True),
    "an empty batch between": ([X[:0], X, (X[:0], LABELS[:0])], False),
    "with a graph": ([X.clone().requires_grad_()], False),
    "in double precision": ([X.double()], False),
    "made one by one": ((part for part in X.split(3)), False),
}


@pytest.fixture(scope="module")
def network():
    return prepared(small(), torch.randn(64, 1, 8, 8))


@pytest.mark.parametrize("form", FORMS)
def test_batches_of_any_form_verify(form, network, tmp_path):
    images, labelled = FORMS[form]
    parity = export_onnx(network, tmp_path / "net.onnx", images)
    assert parity.images == 8 and parity.agreement == 1 and bool(parity.labelled) == labelled


@pytest.mark.parametrize("images", [["text"], [None], [()], [3.0], [torch.tensor(1.0)], [(np.float32(1),)]])
def test_what_holds_no_samples_is_refused(images, network, tmp_path):
    with pytest.raises(ValueError, match="images holds"):
        export_onnx(network, tmp_path / "net.onnx", images)
    assert not list(tmp_path.iterdir())


NAMES = {"packed": "net.packed", "onnx": "net.onnx", "mixed": "net.mixed.onnx", "openvino": "net.xml"}
NAMES |= {"qonnx": "net.qonnx.onnx", "tflite": "net.tflite", "tflite4": "net.int4.tflite", "c": "net.c"}


def written(name, network, folder, **options):
    """(report, the file opened) of the format `name`."""
    packages = {"mixed": "onnxscript", "openvino": "openvino", "qonnx": "qonnx", "tflite": "ai_edge_litert"}
    if (package := packages.get(name.removesuffix("4"))) is not None:
        pytest.importorskip(package)
    report = export(network, folder / NAMES[name], [(X, LABELS)], about={"by": name}, **options)
    return report, load(folder / NAMES[name], small() if name == "packed" else None)


def test_the_names_here_are_all_formats():
    assert set(NAMES) == set(FORMATS)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n == "c" else n for n in NAMES])
def test_any_format_in_one_call_and_back(name, network, tmp_path):
    report, loaded = written(name, network, tmp_path)
    assert (report.format, report.path) == (name, tmp_path / NAMES[name])
    assert report.parity.images == report.parity.labelled == 8 and report.parity.agreement == 1
    if name == "c":  # of which the constants count, not the text
        assert report.size < (tmp_path / "net.c" / "net.c").stat().st_size
    else:
        assert report.size == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert (
        report.float_size == sum(4 * p.numel() for p in small().state_dict().values() if p.is_floating_point()) + 8 * 7
    )
    assert str(report).startswith(f"{report.path} ({name}): {report.size:,} bytes")
    assert (loaded.format, loaded.about, loaded.preprocessing) == (name, {"by": name}, None)
    assert loaded.shape == (None if name == "packed" else (1, 8, 8)) and loaded.act_bits == (2, 8)
    with torch.no_grad():
        expected = network(X)
    for x in (X, X.numpy(), X.double()):
        got = loaded(x)
        assert torch.equal(got, expected) if name == "packed" else torch.allclose(got, expected, atol=1e-2)
    if name != "packed":
        assert torch.equal(loaded(input=X)["output"], loaded(X))
        with pytest.raises(ValueError, match=r"input has the shape \(8, 8, 8\); .*net"):
            loaded(X[:, 0])
        with pytest.raises(ValueError, match="inputs are tokens; expected input"):
            loaded({"tokens": X})
        with pytest.raises(ValueError, match=rf"network is given; .*{name}"):
            load(report.path, small())


@pytest.mark.parametrize("name", ["onnx", pytest.param("mixed", marks=pytest.mark.slow), "openvino"])
def test_images_as_they_are(name, tmp_path):
    images = torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8)
    model = prepared(small(), (images.float() / 255 - 0.4) / 0.3)
    for package in {"mixed": ("onnxscript",), "openvino": ("openvino",)}.get(name, ()):
        pytest.importorskip(package)
    export(model, tmp_path / NAMES[name], [images], preprocessing=((0.4,), (0.3,)))
    loaded = load(tmp_path / NAMES[name])
    assert [list(part) for part in loaded.preprocessing] == [[0.4], [0.3]]
    with torch.no_grad():
        expected = model((images.float() / 255 - 0.4) / 0.3)
    assert torch.allclose(loaded(images), expected, atol=1e-2)
    with pytest.raises(ValueError, match=r"input is torch\.float32; .* torch\.uint8"):
        loaded(images.float())


@pytest.mark.parametrize(
    ("name", "how", "message"),
    [
        ("net", {}, r"net', .*ending of no format.*\.onnx \(onnx\)"),
        ("net.xml", {"format": "onnx"}, r"net\.xml'; for --to onnx"),
        ("net.onnx", {"format": "tensorrt"}, "format is 'tensorrt'; expected one of packed, onnx"),
        ("net.packed", {"preprocessing": ((0.5,), (0.5,))}, "preprocessing is given; .*packed"),
        ("net.qonnx.onnx", {"preprocessing": ((0.5,), (0.5,))}, "preprocessing is given; .*qonnx"),
    ],
)
def test_options_that_do_not_fit_are_named(name, how, message, network, tmp_path):
    with pytest.raises(ValueError, match=message):
        export(network, tmp_path / name, [X], **how)
    assert not list(tmp_path.iterdir())


def test_a_packed_file_without_its_network_says_what_it_can(network, tmp_path):
    spequant.pack(network, tmp_path / "net.packed", {"of": "a test"})
    loaded = spequant.load(tmp_path / "net.packed")
    assert loaded.about == {"of": "a test"} and loaded.act_bits == (2, 8) and loaded.model is None
    with pytest.raises(ValueError, match=r"net\.packed holds weights only; .*network="):
        loaded(X)
    with pytest.raises(ValueError, match="file of another network"):
        spequant.load(tmp_path / "net.packed", nn.Linear(3, 3))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.onnx does not exist"):
        spequant.load(tmp_path / "nowhere.onnx")


def test_packed_answers_are_compared_bit_by_bit(network, tmp_path, monkeypatch):
    right = packed.load_packed

    def wrong(path, network):
        model = right(path, network)
        model.linear.layer.bias.data[0] += 2**-20
        return model

    monkeypatch.setattr("spequant.deploy.formats.packed.load_packed", wrong)
    with pytest.raises(ValueError, match=r"net\.packed: 8 of 80 logits differ"):
        export(network, tmp_path / "net.packed", [X])
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    turned = network.to(memory_format=torch.channels_last)
    assert export(turned, tmp_path / "net.packed", [X]).parity.images == 8


WRONG = {
    "std of zero": ((0.5,), (0.0,)),
    "negative std": ((0.5,), (-1.0,)),
    "NaN": ((math.nan,), (1.0,)),
    "infinite": ((0.5,), (math.inf,)),
    "other lengths": ((0.5, 0.5), (1.0,)),
    "one part": ((0.5,),),
    "a number": 0.5,
    "empty": ((), ()),
    "words": (("a",), ("b",)),
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
def test_preprocessing_that_normalises_nothing_is_refused(tmp_path, value):
    with pytest.raises(ValueError, match=r"^preprocessing is .* \(mean, std\)"):
        export(nn.Linear(2, 2), tmp_path / "net.onnx", [X.byte()], preprocessing=value)
    assert not list(tmp_path.iterdir())


def test_preprocessing_of_other_channels_than_the_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^preprocessing has 3 channels; expected 1"):
        export(nn.Linear(2, 2), tmp_path / "net.onnx", [X.byte()], preprocessing=([0.5] * 3, torch.ones(3)))


@pytest.mark.filterwarnings("ignore:invalid value encountered in cast")  # numpy's word on NaN, which has no code
def test_images_that_are_not_finite_are_said_to_be_so(tmp_path):
    x = torch.randn(8, 6)
    with pytest.raises(ValueError, match=r"NaN or infinite"):
        export_onnx(prepared(Twice(), torch.randn(64, 6)), tmp_path / "net.onnx", [x * math.nan])


def test_a_size_is_compared_with_the_float_networks_in_words():
    assert times_fp32(100, 250) == "2.5 times smaller than in fp32"
    assert times_fp32(300, 200) == "1.5 times as large as in fp32"
