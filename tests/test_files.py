"""Files that are there whole or not at all."""

import json

import pytest

from spequant.files import TEMPORARY, check_parent, placed, placed_folder, remove, write_json, write_whole


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_takes_its_place_at_the_end(tmp_path):
    write_whole(tmp_path / "a", "old")
    with placed(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a").read_text() == "old" and temporary.parent == tmp_path
    assert (tmp_path / "a").read_text() == "new" and names(tmp_path) == ["a"]


def test_after_an_exception_what_was_there_before_stays(tmp_path):
    write_whole(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), placed(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), placed_folder(tmp_path / "f") as temporary:
        (temporary / "b").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_folder_takes_the_place_of_another(tmp_path):
    for content in ("one", "two"):
        with placed_folder(tmp_path / "f") as temporary:
            (temporary / content).write_text(content)
        assert names(tmp_path) == ["f"] and names(tmp_path / "f") == [content]


def test_what_a_crash_left_is_cleared(tmp_path):
    left = tmp_path / f"{TEMPORARY}f"
    left.mkdir()
    (left / "half").write_text("")
    with placed_folder(tmp_path / "f") as temporary:
        (temporary / "whole").write_text("")
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["whole"]
    (tmp_path / f"{TEMPORARY}removed-f").mkdir()
    remove(tmp_path / "f")
    remove(tmp_path / "f")
    assert names(tmp_path) == []


def test_json_is_written_where_a_path_is_given(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2]})
    write_json(None, {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]} and names(tmp_path) == ["a.json"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]} and names(tmp_path) == ["a.json"]


def test_a_folder_that_is_not_there_is_named(tmp_path):
    path = tmp_path / "nowhere" / "a"
    for write in (check_parent, lambda p: write_whole(p, "")):
        with pytest.raises(FileNotFoundError, match=r"a cannot be written: .*nowhere"):
            write(path)
