"""A run's folder: who may write to it, what it says of where the run was made, rows of training."""

import json
import os
import re
import subprocess

import pytest
import torch
from filelock import FileLock

from spequant.app.runs import folder as run_folder
from spequant.app.runs.folder import Metrics, environment, held, in_use
from support.special_files import PLACES, nodes


def test_folders_that_cannot_take_a_run(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "recipe.json").write_text("{}")
    with pytest.raises(FileExistsError, match="not finished; go on with --resume"), held(folder, resume=False):
        pass
    with FileLock(folder / ".lock"):
        assert in_use(folder)
        with pytest.raises(OSError, match="in use by"), held(folder, resume=True):
            pass
    assert not in_use(folder)
    (folder / "result.json").write_text("{}")
    with pytest.raises(FileExistsError, match="holds a finished run"), held(folder, resume=True):
        pass
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to"), held(tmp_path / "file" / "run", resume=False):
        pass
    assert (tmp_path / "file").read_text() == ""


def test_a_folder_of_which_nothing_came_is_removed(tmp_path):
    made = tmp_path / "a" / "b"
    with pytest.raises(KeyError), held(made, resume=False):
        assert made.is_dir() and in_use(made)
        raise KeyError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("what", ["a dangling link", "a link to a folder"])
def test_a_link_to_a_folder_takes_a_run(what, tmp_path):
    path = PLACES[what].make(tmp_path, "run")
    with held(path / "first", resume=False), held(path, resume=False):
        assert in_use(path) and path.is_symlink() and path.is_dir()
        (path / "recipe.json").write_text("{}")
    assert path.is_symlink() and (path / "recipe.json").is_file()


@pytest.mark.parametrize("what", ["a file", "a pipe", "a device", "a socket", "a circle of links"])
def test_what_is_no_folder_takes_none(what, tmp_path):
    path = PLACES[what].make(tmp_path, "run")
    before = nodes(tmp_path)
    for folder in (path, path / "below"):
        with pytest.raises(OSError, match=f"{folder} cannot be written to"), held(folder, resume=False):
            pytest.fail("the run began")
    assert nodes(tmp_path) == before


def test_a_run_names_the_commit_of_its_own_code_alone(tmp_path, monkeypatch):
    def commit(path):
        monkeypatch.setattr(run_folder, "__file__", str(path))
        return environment(torch.device("cpu"))["commit"]

    installed = tmp_path / ".venv" / "folder.py"
    installed.parent.mkdir()
    installed.touch()
    (tmp_path / "mine.py").touch()
    for words in ("init -q", "add mine.py", "-c user.name=a -c user.email=b commit -qm a"):
        subprocess.run(["git", *words.split()], cwd=tmp_path, check=True)
    assert commit(installed) is None  # in somebody's repository, whose commit says nothing of this code
    assert re.fullmatch(r"[0-9a-f]{7,}", commit(tmp_path / "mine.py"))
    monkeypatch.setenv("PATH", "")
    assert commit(tmp_path / "mine.py") is None


def test_rows_after_a_checkpoint_are_cut_away(tmp_path):
    path = tmp_path / "metrics.jsonl"
    metrics = Metrics(path)
    metrics.write({"row": 1})
    size = metrics.size()
    metrics.write({"row": 2})
    metrics.close()
    assert os.path.getsize(path) > size
    again = Metrics(path, size)
    again.write({"row": 3})
    again.close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"row": 1}, {"row": 3}]
