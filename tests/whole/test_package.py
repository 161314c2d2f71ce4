"""What others depend on: one version, types that are seen, Pythons that agree, a page and archives that are whole."""

import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import pytest

import spequant
from spequant.data import fashion_mnist, load_digits, load_fashion_mnist
from spequant.train import make_accelerator

ROOT = Path(__file__).resolve().parents[2]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
MODULES = {"scikit-learn": "sklearn"}  # distributions whose module has another name
LINK = re.compile(r"\[[^\]]+\]\(([^)\s]+)\)")

APPLICATION = (
    *("__main__", "app.cli", "app.commands", "app.exports", "app.indexing", "app.predict", "app.terminal", "app.train"),
    *("app.studies", "app.bench", "app.fit", "app.soft_labels", "app.zoo"),
)
FOREIGN = ("integrations", "preparation.adapters.")
"""rooms that are about other libraries: imported where those are in use"""

ABSENT = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = staticmethod(lambda name, path=None, target=None: (
    None if name.partition(".")[0] in sys.argv[1].split(",") else find(name, path, target)
))
"""

IMPORT_ALL = """
import pkgutil, spequant
from importlib import import_module
left_out = tuple("spequant." + room for room in sys.argv[2].split(","))
for module in pkgutil.walk_packages(spequant.__path__, "spequant.", onerror=lambda name: None):
    if not module.name.startswith(left_out):
        import_module(module.name)
"""

USE = """
import torch
from pathlib import Path
from torch import nn
import spequant
from spequant.quantizers import PACT, SAWB
from spequant.train import parameter_groups

def network():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 8), nn.ReLU(),
                         nn.Linear(8, 3))

batch = torch.randn(8, 1, 8, 8), torch.randint(3, (8,))
model = spequant.prepare(network(), weight=SAWB(2), act=PACT(2))
spequant.calibrate(model, [batch], samples=8)
optimizer = torch.optim.SGD(parameter_groups(model, lr=0.01, weight_decay=1e-4))
for method in (spequant.SPEQ(high_bits=8, probability=0.5), spequant.Retrain()):
    method(model, batch).total.backward()
    optimizer.step()
    optimizer.zero_grad()
spequant.reestimate_batch_norm(model, [batch])
spequant.pack(model, "model.packed")
again = spequant.load_packed("model.packed", network())
assert torch.equal(again.eval()(batch[0]), model.eval()(batch[0]))
print(spequant.__version__, Path(spequant.__file__).parent)
"""


def test_one_version():
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    changes = re.search(r"^## \[(\d\S*)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert citation is not None and changes is not None
    assert citation[1] == changes[1] == spequant.__version__
    assert "version" not in PROJECT["project"] and PROJECT["tool"]["hatch"]["version"]["path"].endswith("__init__.py")


def test_type_checkers_see_the_types():
    assert (Path(spequant.__file__).parent / "py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["project"]["classifiers"]


def test_the_pythons_agree():
    classifiers = re.findall(r"Python :: 3\.(\d+)", "\n".join(PROJECT["project"]["classifiers"]))
    minors = sorted(map(int, classifiers))
    assert PROJECT["project"]["requires-python"] == f">=3.{minors[0]}"
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py3{minors[0]}"
    assert PROJECT["tool"]["pyright"]["pythonVersion"] == f"3.{minors[0]}"
    make = (ROOT / "Makefile").read_text()
    candidates = re.search(r"^CANDIDATES = (.*)$", make, re.MULTILINE)
    assert candidates is not None and sorted(map(int, re.findall(r"python3\.(\d+)", candidates[1]))) == minors
    assert f"sys.version_info < (3, {minors[0]})" in make
    oldest = set(re.findall(r"(?:>=|older than Python) ?3\.(\d+)", make))
    assert oldest == {str(minors[0])}, "the Makefile's messages name another oldest Python"
    *most, last = (f"3.{minor}" for minor in minors)
    sentence = f"Python {', '.join(most)} or {last}"
    assert len(re.findall(rf"{re.escape(sentence)}\b", (ROOT / "README.md").read_text())) == 2


def readme_links():
    """The files and folders that README links to."""
    links = {link.partition("#")[0] for link in LINK.findall((ROOT / "README.md").read_text())}
    return [link for link in links if not link.startswith("https:")]


def test_links_of_the_readme_lead_somewhere():
    links = readme_links()
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_the_index_page_has_no_relative_link():
    pytest.importorskip("hatch_fancy_pypi_readme", reason="an index page is made by the extra dev")
    command = [sys.executable, "-m", "hatch_fancy_pypi_readme", str(ROOT / "pyproject.toml")]
    page = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert page.startswith("# spequant\n") and "`docs/runs.md`" in page
    assert [link for link in LINK.findall(page) if not link.startswith("https://")] == []


def _module(requirement: str) -> str:
    name = re.split(r"[<>=\[; ]", requirement)[0]
    return MODULES.get(name, name.replace("-", "_"))


def test_a_missing_package_is_named_with_an_extra_that_has_it():
    calls = [
        (match[1].partition(".")[0], match[2])
        for path in (ROOT / "src").rglob("*.py")
        for match in re.finditer(r'needs\("([\w.]+)", "(\w+)"\)', path.read_text())
    ]
    assert {"accelerate", "sklearn", "torchvision", "onnx"} <= {module for module, _ in calls}
    wrong = {(module, extra) for module, extra in calls if module not in map(_module, EXTRAS[extra])}
    assert not wrong


@pytest.mark.parametrize(
    ("package", "extra", "call"),
    [
        ("sklearn", "vision", load_digits),
        ("torchvision", "vision", lambda: load_fashion_mnist("absent", download=True)),
        ("accelerate", "train", make_accelerator),
    ],
)
def test_without_its_extra_a_function_says_which(package, extra, call, monkeypatch):
    monkeypatch.setattr(fashion_mnist, "DEBIAN", Path("absent"))
    for name in {package, *(name for name in sys.modules if name.startswith(f"{package}."))}:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=rf" is not installed: pip install 'spequant\[{extra}\]'$"):
        call()


def test_the_library_works_without_extras(tmp_path):
    optional = {_module(r) for e in ("vision", "cli", "report", "text", "train", "deploy") for r in EXTRAS[e]}
    absent = ",".join(optional - {"filelock"})  # torch itself needs that one
    command = [sys.executable, "-c", ABSENT + IMPORT_ALL + USE, absent, ",".join(APPLICATION + FOREIGN)]
    here = {**os.environ, "PYTHONPATH": str(Path(spequant.__file__).parents[1])}
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_sdist_and_wheel_are_whole_and_install(tmp_path):
    for tool in ("build", "hatchling", "hatch_fancy_pypi_readme"):
        pytest.importorskip(tool, reason="archives are built by the extra dev")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # the wheel from the sdist's files
    assert done.returncode == 0, done.stdout + done.stderr
    name = f"spequant-{spequant.__version__}"

    with tarfile.open(tmp_path / f"{name}.tar.gz") as archive:
        inside = {member.removeprefix(f"{name}/") for member in archive.getnames()}
    needed = {
        path.relative_to(ROOT).as_posix()
        for folder in ("src", "tests", "tools", "examples", "benchmarks")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert needed - inside == set()
    assert [link for link in readme_links() if not any(f"{member}/".startswith(f"{link}/") for member in inside)] == []

    wheel = tmp_path / f"{name}-py3-none-any.whl"
    with zipfile.ZipFile(wheel) as archive:
        members = archive.namelist()
        metadata = archive.read(f"{name}.dist-info/METADATA").decode()
    assert "spequant/py.typed" in members
    assert {member.partition("/")[0] for member in members} == {"spequant", f"{name}.dist-info"}
    assert f"\nVersion: {spequant.__version__}\n" in metadata and "\nProject-URL: " in metadata
    assert not [link for link in LINK.findall(metadata) if not link.startswith("https://")]

    if not any(distributions(name="pip")):
        pytest.skip("the archives are whole; this environment has no pip that would install them")
    site = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", str(site), str(wheel)]
    subprocess.run(command, capture_output=True, check=True)
    here = {**os.environ, "PYTHONPATH": str(site)}
    command = [sys.executable, "-P", "-c", USE]
    done = subprocess.run(command, cwd=tmp_path, env=here, capture_output=True, text=True, check=False)
    assert done.stdout.split() == [spequant.__version__, str(site / "spequant")], done.stderr
    assert (site / "bin" / "spequant").is_file()
