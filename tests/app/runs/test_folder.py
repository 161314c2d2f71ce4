"""A run's folder: what it says of where the run was made, and of a run that is missing."""

import re
import subprocess
from pathlib import Path

import pytest
import torch

from spequant.app.runs import folder as run_folder
from spequant.app.runs.folder import environment, read_result, run_first, weight_file


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


@pytest.mark.parametrize(
    ("folder", "command"),
    [
        ("runs/digits-float", "spequant train digits-float"),
        ("runs/digits-w2a2-speq-seed3", "spequant train digits-w2a2-speq --train.seed 3"),
        ("a b/digits-float", "spequant train digits-float --out 'a b/digits-float'"),
    ],
)
def test_a_missing_run_of_a_recipe_is_named_with_the_command_that_makes_it(folder, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_first(Path(folder)) == f"; run `{command}` first"
    for read in (weight_file, read_result):
        with pytest.raises(FileNotFoundError, match=rf"{folder}.*`{command}` first"):
            read(Path(folder))
    Path(folder).mkdir(parents=True)
    (Path(folder) / "recipe.json").touch()
    assert run_first(Path(folder)) == f"; run `{command} --resume` first"
    (Path(folder) / "result.json").touch()
    assert run_first(Path(folder)) == ""


def test_what_is_no_run_of_a_recipe_has_no_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the demo left no runs/
    for path in ("runs/mine", "digits-float.th", "runs/digits-float-seed", "runs"):
        assert run_first(Path(path)) == "" and weight_file(Path(path)) == Path(path)
