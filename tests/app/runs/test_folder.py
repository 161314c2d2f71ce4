"""A run's folder: what it says of where the run was made."""

import re
import subprocess

import torch

from spequant.app.runs import folder as run_folder
from spequant.app.runs.folder import environment


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
