"""The suite notices when what makes the method right is taken out of it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MUTATIONS = {
    "nothing": ("functional.py", "", "", 0),
    "straight-through estimator": (
        "functional.py",
        "grad32 * reached(x - bottom) * reached(high - x)",
        "grad32 * 0",
        1,
    ),
    "batch norm of the teacher's pass": ("batch_norm.py", 'if mode == "leave"', 'if mode == "never"', 1),
    "no gradient to the teacher": (
        "methods/speq.py",
        "self.task.logits(model, batch).detach()",
        "self.task.logits(model, batch)",
        1,
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_mutation(name, tmp_path):
    file, old, new, status = MUTATIONS[name]
    shutil.copytree(ROOT / "src", tmp_path / "src")
    shutil.copytree(ROOT / "tests", tmp_path / "tests")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    target = tmp_path / "src/spequant" / file
    text = target.read_text()
    assert old in text
    target.write_text(text.replace(old, new) if old else text)
    (tmp_path / "tests/test_origin.py").write_text(
        f"import spequant\n\n\ndef test_origin():\n    assert spequant.__file__.startswith({str(tmp_path)!r})\n"
    )
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    for tests, expected in (("tests/test_origin.py", 0), ("tests/methods/test_methods.py", status)):
        done = subprocess.run([*run, tests], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == expected, done.stdout[-3000:]
