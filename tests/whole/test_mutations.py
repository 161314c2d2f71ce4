"""The suite notices when what makes the method right is taken out of it: mutants, each killed by the quick tests of its
ground."""

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
METHOD, QUANTIZERS = "tests/methods/test_speq.py", "tests/quantizers"
LOSSES, PACKED = "tests/methods/test_losses.py", "tests/deploy/formats/test_packed.py"


@dataclass(frozen=True)
class Mutant:
    """file: below src/spequant; `old` in it becomes `new`. tests: a file or folder that fails then."""

    file: str
    old: str
    new: str
    tests: str


MUTANTS = {
    "no straight-through estimator": Mutant(
        "functional/grids.py", "(grad32 * reached(x - bottom)).mul_(reached(high - x))", "grad32 * 0", METHOD
    ),
    "the teacher's pass moves batch norm": Mutant(
        "calibration/batch_norm.py", 'if mode == "leave" else []', 'if mode == "never" else []', METHOD
    ),
    "a gradient to the teacher": Mutant(
        "methods/speq.py",
        "logits.append(self.task.logits(model, batch).detach())",
        "logits.append(self.task.logits(model, batch))",
        METHOD,
    ),
    "the wrong sign in LSQ's gradient": Mutant(
        "functional/grids.py", "above is None else above + rounding", "above is None else above - rounding", QUANTIZERS
    ),
    "student and teacher swapped in the call of the loss": Mutant(
        "methods/speq.py",
        "self.loss, student, teacher, batch",
        "self.loss, teacher, student, batch",
        METHOD,
    ),
    "student and teacher swapped in the loss": Mutant(
        "methods/losses.py",
        'def kl(\n    student: Float[Tensor, "batch *parts classes"],\n    teacher:',
        'def kl(\n    teacher: Float[Tensor, "batch *parts classes"],\n    student:',
        LOSSES,
    ),
    "codes packed off by one": Mutant(
        "deploy/formats/packed.py",
        "pack_bits(codes.reshape(-1).cpu().numpy(), bits)",
        "pack_bits(codes.reshape(-1).cpu().numpy().clip(1) - 1, bits)",
        PACKED,
    ),
}
ORIGIN = "import spequant\n\n\ndef test_origin():\n    assert spequant.__file__.startswith({!r})\n"


def quick_tests(folder: Path, tests: str) -> subprocess.CompletedProcess[str]:
    """Those of `tests` in a copy of this project in `folder`, up to the first that fails."""
    for name in ("src", "tests"):
        if not (folder / name).exists():
            shutil.copytree(ROOT / name, folder / name)
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "tests/test_origin.py").write_text(ORIGIN.format(str(folder)))
    run = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not slow"]
    environment = {**os.environ, "PYTHONPATH": str(folder / "src"), "OMP_NUM_THREADS": "1"}
    command = [*run, "tests/test_origin.py", tests]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize("tests", sorted({mutant.tests for mutant in MUTANTS.values()}))
def test_without_a_mutation_the_tests_pass(tests, tmp_path):
    done = quick_tests(tmp_path, tests)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed(name, tmp_path):
    mutant = MUTANTS[name]
    shutil.copytree(ROOT / "src", tmp_path / "src")
    target = tmp_path / "src/spequant" / mutant.file
    target.write_text(target.read_text().replace(mutant.old, mutant.new))
    done = quick_tests(tmp_path, mutant.tests)
    assert done.returncode == 1 and "test_origin" not in done.stdout, done.stdout[-3000:]


def test_mutants_apply():
    """What each takes away is still there, which the quick tests look at, too."""
    for name, mutant in MUTANTS.items():
        assert (ROOT / "src/spequant" / mutant.file).read_text().count(mutant.old) == 1, name
        assert (ROOT / mutant.tests).exists(), name
