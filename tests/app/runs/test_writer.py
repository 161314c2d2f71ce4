"""Who may write to a run's folder, and what a resumed run finds there."""

import json

import pytest
import torch
from filelock import FileLock

from spequant.app.recipes import Recipe
from spequant.app.runs.folder import in_use
from spequant.app.runs.writer import opened
from spequant.train import Snapshot
from support.special_files import PLACES, nodes


def test_folders_that_cannot_take_a_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text("{}")
    with pytest.raises(FileExistsError, match="not finished; go on with --resume"), opened(Recipe(), folder, False):
        pass
    with FileLock(folder / ".lock"):
        assert in_use(folder)
        with pytest.raises(OSError, match="in use by"), opened(Recipe(), folder, True):
            pass
    assert not in_use(folder)
    (folder / "result.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds a finished run"), opened(Recipe(), folder, False):
        pass
    with pytest.raises(ValueError, match=r"result\.json is no result"), opened(Recipe(), folder, True):
        pass
    (folder / "result.json").write_text('{"recipe": "run", "seed": 0}')
    with FileLock(folder / ".lock"), opened(Recipe(), folder, True) as writer:  # read, so that nothing has to be free
        assert writer.result == {"recipe": "run", "seed": 0}
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to"), opened(Recipe(), tmp_path / "file" / "run", False):
        pass
    assert (tmp_path / "file").read_text() == ""


def test_a_folder_of_which_nothing_came_is_removed(tmp_path):
    made = tmp_path / "a" / "b"
    with pytest.raises(KeyError), opened(Recipe(), made, False):
        assert made.is_dir() and in_use(made)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_fails_leaves_the_folder_to_the_one_beside_it(tmp_path):
    parent = tmp_path / "runs"
    with pytest.raises(ValueError, match="its own error"), opened(Recipe(), parent / "a", False):
        (parent / "b").mkdir()
        raise ValueError("its own error")
    assert [path.name for path in parent.iterdir()] == ["b"]


@pytest.mark.parametrize("what", ["a dangling link", "a link to a folder"])
def test_a_link_to_a_folder_takes_a_run(what, tmp_path):
    path = PLACES[what].make(tmp_path, "run")
    with opened(Recipe(), path / "first", False), opened(Recipe(), path, False):
        assert in_use(path) and path.is_symlink() and path.is_dir()
        (path / "recipe.json").write_text("{}")
    assert path.is_symlink() and (path / "recipe.json").is_file()


@pytest.mark.parametrize("what", ["a file", "a pipe", "a device", "a socket", "a circle of links"])
def test_what_is_no_folder_takes_none(what, tmp_path):
    path = PLACES[what].make(tmp_path, "run")
    before = nodes(tmp_path)
    for folder in (path, path / "below"):
        with pytest.raises(OSError, match=f"{folder} cannot be written to"), opened(Recipe(), folder, False):
            pytest.fail("the run began")
    assert nodes(tmp_path) == before


def test_rows_after_a_checkpoint_are_cut_away(tmp_path):
    snapshot = Snapshot({"w": torch.ones(1)}, {"step": 3})
    with opened(Recipe(), tmp_path, False) as writer:
        assert writer.last_checkpoint() == (None, {})
        writer.start(torch.device("cpu"), 0)
        writer.row({"row": 1})
        writer.checkpoint(snapshot, {"seconds": 7.0})
        writer.row({"row": 2})
        writer.close()
    with opened(Recipe(), tmp_path, True) as writer:
        again, facts = writer.last_checkpoint()
        assert again.tensors == snapshot.tensors and again.numbers == snapshot.numbers and facts["seconds"] == 7.0
        writer.start(torch.device("cpu"), facts["metrics_bytes"])
        writer.row({"row": 3})
        writer.close()
    path = tmp_path / "metrics.jsonl"
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"row": 1}, {"row": 3}]
    expected = pytest.raises(ValueError, match="name is 'run', expected 'other'")
    with opened(Recipe(name="other"), tmp_path, True) as writer, expected:
        writer.last_checkpoint()
