"""Names: objects of references found, near names hinted at, lists cut short, functions called with what they name."""

import math

import pytest

from spequant.names import called_with, imported, named_or_imported, nearest, reference_to, some_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working folder, with a module in it and one in a folder below."""
    (tmp_path / "own_module.py").write_text("import own_sibling\n\nclass Outer:\n    class Inner:\n        value = 3\n")
    (tmp_path / "own_sibling.py").write_text("x = 1\n")
    (tmp_path / "below").mkdir()
    (tmp_path / "below/json.py").write_text("def made():\n    return 4\n")  # as a module of Python is called
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    (tmp_path / "failing.py").write_text("raise KeyError('x')\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_objects_of_the_working_folder_of_packages_and_of_files(folder):
    assert imported("math:pi") == math.pi
    assert imported("own_module:Outer.Inner").value == 3
    assert imported("below/json.py:made")() == 4 and imported(f"{folder}/below/json.py:made")() == 4
    assert imported("json:dumps")([1]) == "[1]"
    assert imported("below/json.py:made") is imported("below/json.py:made")


@pytest.mark.parametrize("reference", ["math:sqrt", "own_module:Outer.Inner", "below/json.py:made"])
def test_a_reference_is_found_again(reference, folder):
    thing = imported(reference)
    if reference != "math:sqrt":  # written in C, it says no qualified name of its module
        assert imported(reference_to(thing)) is thing
    else:
        assert reference_to(thing) == reference


@pytest.mark.parametrize(
    ("reference", "named"),
    [
        ("own_module", "'own_module' names no object; expected package.module:Object or file.py:Object"),
        (":x", "':x' names no object"),
        ("own_module:", "'own_module:' names no object"),
        ("own_modul:Outer", "own_modul:Outer: there is no module own_modul, .* installed"),
        ("own_module:Outre", "own_module:Outre: .*own_module.py has no 'Outre'; did you mean Outer"),
        ("own_module:Outer.Iner", "has no 'Outer.Iner'; did you mean Inner"),
        ("below/jso.py:made", "below/jso.py:made: there is no file .*below/jso.py"),
        ("broken:x", "broken:x: importing broken failed: No module named 'no_such_package'"),
        ("failing:x", "failing:x: importing failing failed: KeyError: 'x'"),
        ("failing.py:x", "failing.py:x: .*failing.py failed: KeyError: 'x'"),
    ],
)
def test_what_is_not_there_is_named_with_where_it_was_looked_for(reference, named, folder):
    with pytest.raises(ValueError, match=named):
        imported(reference)


def test_the_search_path_is_as_it_was(folder):
    import sys

    before = list(sys.path)
    for reference in ("own_module:Outer", "below/json.py:made"):
        imported(reference)
    with pytest.raises(ValueError, match="failing"):
        imported("failing.py:x")
    assert sys.path == before


def test_a_name_is_looked_up_before_it_is_imported():
    known = {"sgd": 1, "adamw": 2}
    assert (
        named_or_imported("optimizer", "sgd", known) == 1
        and named_or_imported("optimizer", "math:pi", known) == math.pi
    )
    with pytest.raises(ValueError, match=r"optimizer is 'adam'; did you mean adamw\?.* package\.module:Object"):
        named_or_imported("optimizer", "adam", known)
    assert nearest("zzz", ["a", "b"]) == "expected a, b"


def test_functions_get_what_they_name():
    at_hand = {"classes": 10, "size": 32}
    assert called_with(lambda classes: classes, at_hand, "f") == 10
    assert called_with(lambda size, other=3: size + other, at_hand, "f") == 35
    assert called_with(lambda **rest: rest, at_hand, "f") == at_hand
    assert called_with(lambda *rest: rest, at_hand, "f") == ()
    with pytest.raises(ValueError, match=r"network f .* depth, width; .* classes, size"):
        called_with(lambda depth, width, classes: 0, at_hand, "network f")
    with pytest.raises(ValueError, match=r"mine:f needs depth; .* default"):
        called_with(lambda depth: 0, {}, "mine:f")


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
