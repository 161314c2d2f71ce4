"""Names: lists of them cut short, and objects by name."""

import sys
from collections import OrderedDict

import pytest

from spequant.names import imported, some_of


@pytest.mark.parametrize(
    ("names", "most", "expected"),
    [
        (["a"], 3, "a"),
        (["a", "b", "c"], 3, "a, b, c"),
        (["a", "b", "c", "d", "e"], 3, "a, b, c and 2 more"),
        (["a", "b"], 1, "a and 1 more"),
        ([], 3, ""),
    ],
)
def test_what_is_left_out_is_counted(names, most, expected):
    assert some_of(names, most) == expected


MODULE = """
import dataclasses

@dataclasses.dataclass
class Box:
    width: int = 3

def make():
    return Box()
"""


def test_an_object_is_imported_from_a_file_or_a_module(tmp_path, monkeypatch):
    (tmp_path / "boxes").mkdir()
    (tmp_path / "boxes" / "made_of_wood.py").write_text(MODULE)
    (tmp_path / "beside.py").write_text("from boxes.made_of_wood import make\n")
    monkeypatch.chdir(tmp_path)
    assert imported("boxes/made_of_wood.py:make")().width == 3
    assert imported(f"{tmp_path}/boxes/made_of_wood.py:Box.width") == 3
    assert imported("boxes.made_of_wood:make")().width == 3
    assert imported("beside.py:make")().width == 3
    assert imported("collections:OrderedDict") is OrderedDict
    assert str(tmp_path) not in sys.path


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("collections", "'collections' names no object; .*package.module:Object or file.py:Object"),
        (":make", "':make' names no object"),
        ("collections:", "'collections:' names no object"),
        ("nowhere.py:make", r"no file .*nowhere\.py"),
        ("nowhere:make", "no module nowhere, .* working folder"),
        ("collections.nowhere:make", r"no module collections\.nowhere"),
        ("broken.py:make", r"importing broken\.py failed: ZeroDivisionError"),
        ("needing.py:make", r"needing\.py needs the module nowhere"),
        ("empty.py:make", r"empty\.py has no make"),
        ("collections:OrderedDict.nothing", r"has no OrderedDict\.nothing"),
    ],
)
def test_what_cannot_be_imported_is_named(reference, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.py").write_text("1 / 0\n")
    (tmp_path / "needing.py").write_text("import nowhere\n")
    (tmp_path / "empty.py").write_text("")
    with pytest.raises(ValueError, match=message):
        imported(reference)
