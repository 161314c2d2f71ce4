"""Names of classes: in every format, and as many as the network has outputs."""

import pytest
import torch
from torch import nn

import spequant
from spequant.deploy import FORMATS
from spequant.deploy.classes import names_in, with_classes
from spequant.deploy.outputs import output_count
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered
from support.task_networks import Pixels, Tokens

NAMES = ["zero", "one", "zwei", "trois", "fyra", "пять", "six", "seven", "eight", "nine"]


SLOW = ("mixed", "openvino", "qonnx", "tflite4", "c")
PACKAGES = {"litert": "ai_edge_litert", "cc": "spequant"}  # engines whose package has another name


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FORMATS]
)
def test_every_format_keeps_them(name, tmp_path):
    if FORMATS[name].engines:
        pytest.importorskip(PACKAGES.get(FORMATS[name].engines[0], FORMATS[name].engines[0]))
    case = lowered("two bits")
    path = tmp_path / f"net{FORMATS[name].suffix}"
    report = spequant.export(case.model, path, [case.x], name, classes=NAMES, about={"mine": 3})
    loaded = spequant.load(path)
    assert loaded.classes == tuple(NAMES) and loaded.about["mine"] == 3
    assert FORMATS[name].engines == () or "with the same answer" in str(report)


@NEEDS_ONNXRUNTIME
def test_a_file_without_names_is_read(tmp_path):
    case = lowered("two bits")
    spequant.export(case.model, tmp_path / "net.packed", [case.x])
    assert spequant.load(tmp_path / "net.packed").classes is None
    for names in (3, "abc", [], [1, 2], {"a": 1}):
        assert names_in({"class_names": names}) is None


@pytest.mark.parametrize(
    ("classes", "about", "named"),
    [
        (["a", "b"], {}, "classes are 2; .* 10 outputs"),
        ("0123456789", {}, "classes is '0123456789'"),
        (list(range(10)), {}, "classes is .*0, 1"),
        ([], {}, r"classes is \[\]"),
        (NAMES, {"class_names": ["a"]}, "about has 'class_names'"),
    ],
)
def test_other_names_are_refused_before_anything_is_written(classes, about, named, tmp_path):
    case = lowered("two bits")
    with pytest.raises(ValueError, match=named):
        spequant.export(case.model, tmp_path / "net.packed", [case.x], classes=classes, about=about)
    assert not list(tmp_path.iterdir())


def test_outputs_are_counted_where_the_classes_are():
    x, ids = torch.zeros(1, 3, 8, 8), torch.zeros(1, 5, dtype=torch.long)
    tokens = {"input_ids": ids, "attention_mask": ids}
    for network, example in ((Pixels(3), x), (Tokens(3), tokens), (nn.Sequential(nn.Flatten(), nn.Linear(192, 3)), x)):
        assert names_in(with_classes(None, ["a", "b", "c"], output_count(network, example)) or {}) == (
            "a",
            "b",
            "c",
        )
    with pytest.raises(ValueError, match="the network gives NoneType"):
        with_classes(None, ["a"], output_count(Tokens(2, ends=True), tokens))
    with pytest.raises(ValueError, match=r"the network gives \(192,\)"):
        with_classes(None, ["a"], output_count(nn.Flatten(0), x))
