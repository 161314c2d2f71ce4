"""The documentation: links lead somewhere, each page is on the site, commands parse, and the Python on pages runs."""

import ast
import importlib
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import tyro
import yaml

import docs_site
from spequant.app.commands.table import COMMANDS
from spequant.app.recipes import RECIPES, to_json
from spequant.app.train import parsed_train
from support.pages import ROOT, Page, mistakes_in

DOCS = ROOT / "docs"
PAGES = [Page(path) for path in sorted(DOCS.rglob("*.md"))]
OTHERS = [Page(ROOT / name) for name in ("README.md", "CONTRIBUTING.md", "examples/README.md")]
BENCHMARKS = [Page(path) for path in sorted((ROOT / "benchmarks").glob("*.md"))]
API = [Page(path) for path in sorted((DOCS / "api").glob("*.md"))]
WITH_PYTHON = [page for page in PAGES if page.python]
QUICK = ("concepts/precision.md", "concepts/speq.md", "how-to/own-method.md", "how-to/own-quantizer.md")
"""Pages whose Python takes less than half a second each."""
NEEDS = {"how-to/lightning.md": "lightning"}
ROOMS = ["", ".quantizers", ".methods", ".methods.tasks", ".deploy", ".train", ".layers", ".data", ".models"]
ROOMS += [".app.recipes", ".app.runs"]
PLACEHOLDERS = {
    "RECIPE": "digits-w2a2-speq",
    "RUN": "digits-float",
    "NAME": "digits-float",
    "A": "digits-float",
    "B": "digits-w2a2-speq",
    "S": "0",
}
WORK = ("studies.sweep.run_sweep", "studies.ladder.run_ladder", "studies.study.run_study")
WORK += ("soft_labels.print_soft_labels",)
"""What the commands that read their words themselves then call."""


def test_every_link_leads_to_a_file_and_to_a_heading_in_it():
    broken = []
    for page in (*PAGES, *OTHERS, *BENCHMARKS):
        for target, anchor in page.links:
            place = (page.path.parent / target) if target else page.path
            if not place.exists() or (anchor and place.suffix == ".md" and anchor not in Page(place.resolve()).anchors):
                broken.append(f"{page}: {target}#{anchor}")
    assert not broken


def test_every_page_is_in_the_navigation_once():
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    listed = re.findall(r"[\w./-]+\.md", yaml.safe_dump(docs_site.fill(nav)))
    assert sorted(listed) == sorted(set(docs_site.sources().values()))


def test_links_out_of_the_folder_lead_to_pages_of_the_site():
    extra, pages = docs_site.extra_pages(), set(docs_site.sources().values())
    for name in pages:
        text = extra[name] if name in extra else (DOCS / name).read_text()
        for target in re.findall(r"\]\(([^)\s#]+)", docs_site.relink(text, name)):
            place = os.path.normpath(Path(name).parent / target)
            assert re.match(r"[a-z]+:", target) or place in pages or (DOCS / place).is_file(), f"{name}: {target}"


def test_an_example_becomes_text_and_code(tmp_path):
    script = tmp_path / "own_script.py"
    script.write_text(
        '"""What it does.\n\npython examples/own_script.py\n"""\n\nimport torch\n\n# And then.\nx = torch\n'
    )
    page = docs_site.example(script)
    expected = (
        "What it does.\n\n```text\npython examples/own_script.py\n```\n\n```python\nimport torch\n```\n\nAnd then.\n\n"
    )
    assert page == f"# Own script\n\n`examples/own_script.py`\n\n{expected}```python\nx = torch\n```\n"


@pytest.mark.parametrize("room", ROOMS)
def test_public_names_are_on_an_api_page(room):
    shown = {name for page in API for name in re.findall(r"^::: (\S+)$", page.text, re.M)}
    names = importlib.import_module(f"spequant{room}").__all__
    absent = [n for n in names if n[0] != "_" and not {f"spequant{room}.{n}", f"spequant.{n}"} & shown]
    assert not absent, f"no page of docs/api has ::: spequant{room}.NAME for {', '.join(absent)}"


def test_figures_of_the_decision_page_stand_on_the_pages_that_it_names():
    page = Page(DOCS / "settings.md")
    claims = [claim for claim in re.split(r"\n(?=- )|\n\n", page.prose) if claim.startswith("- ")]
    assert len(claims) > 20
    for claim in claims:
        linked = [page.path.parent / target for target in re.findall(r"\]\(([^)\s#]+)", claim)]
        evidence = " ".join(path.read_text() for path in linked).replace("+-", "±")
        prose = re.sub(r"\]\([^)]*\)", "]", claim)
        for figure in re.findall(r"(?<![\w.])[+-]?\d*\.\d+(?: ± \d*\.\d+)?", prose):
            assert re.search(rf"(?<![\d.]){re.escape(figure)}(?![\d])", evidence), f"{figure}: {claim}"


def test_commands_parse(tmp_path, monkeypatch):
    for name in WORK:
        monkeypatch.setattr(f"spequant.app.{name}", lambda *args: None)
    for name in ("runs.estimate", "runs.execution", "studies.ladder", "studies.sweep", "studies.workshop"):
        monkeypatch.setattr(f"spequant.app.{name}.check_ready", lambda recipe: None)
    (tmp_path / "runs").mkdir()
    (tmp_path / "my.json").write_text(to_json(RECIPES["digits-float"]()))
    monkeypatch.chdir(tmp_path)
    wrong, seen = [], set()
    for page in (*PAGES, *OTHERS, *BENCHMARKS):
        page.write_files(tmp_path)
        for words in page.commands():
            if not words or words[0] == "COMMAND" or str(words) in seen:
                continue
            seen.add(str(words))
            try:
                _parse([PLACEHOLDERS.get(word, word) for word in words])
            except SystemExit as error:
                if error.code not in (0, None):
                    wrong.append(f"{page}: spequant {' '.join(words)}: {error.code}")
            except ValueError as error:
                wrong.append(f"{page}: spequant {' '.join(words)}: {error}")
    assert len(seen) > 80
    assert not wrong, "\n".join(wrong)


def _parse(words: list[str]) -> None:
    """Read the words of a command as the command does, and do nothing."""
    name = " ".join(words[:2]) if words[0] == "bench" else words[0]
    if name not in COMMANDS:
        raise ValueError(f"there is no command {name}")
    command, words = COMMANDS[name], words[len(name.split()) :]
    if not words or {"-h", "--help"} & set(words):
        return  # the command is only mentioned
    if name == "train":
        parsed_train(words[0], words[1:])
    elif command.of is not None:
        command.function(words)
    else:
        tyro.cli(command.settings, args=words)


@pytest.mark.parametrize("page", WITH_PYTHON, ids=str)
def test_names_in_python_exist(page: Page):
    assert mistakes_in(page) == []


def test_what_does_not_exist_is_a_mistake(tmp_path):
    path = tmp_path / "page.md"
    for line in ("spequant.prepared", "spequant.prepare(x, weights=None)", "from spequant import prepared", "print(y)"):
        path.write_text(f"```python\nimport spequant\n\nx = 1\n{line}\n```\n")
        assert len(mistakes_in(Page(path))) == 1, line


@pytest.mark.parametrize("page", [p for p in WITH_PYTHON if str(p).removeprefix("docs/") in QUICK], ids=str)
def test_python_runs(page: Page, tmp_path, monkeypatch):
    _run(page, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::Warning:lightning.*")  # its advice, and what it says of its own calls of torch
@pytest.mark.parametrize("page", [p for p in WITH_PYTHON if str(p).removeprefix("docs/") not in QUICK], ids=str)
def test_longer_python_runs(page: Page, tmp_path, monkeypatch):
    needed = NEEDS.get(str(page).removeprefix("docs/"), "torch")
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"{needed} is not installed")
    _run(page, tmp_path, monkeypatch)
    for line in page.lines("torchrun .*\\.py$"):
        environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "torch.distributed.run", *line.split()[1:]]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        sums = re.findall(r"\d+\.\d{6}", done.stdout)  # lines of two processes may run into one another
        assert len(sums) == 2 and len(set(sums)) == 1


def _run(page: Page, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a page's Python from top to bottom in `folder`, as a reader would who has the repository's data at hand."""
    page.write_files(folder)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    (folder / "docs").symlink_to(DOCS)
    before = set(sys.modules)
    names: dict = {"__name__": "__main__"}
    try:
        for block in page.python:
            if block.title:
                ast.parse(block.text)
            else:
                exec(compile(block.text, str(page), "exec"), names)
    finally:
        for name in set(sys.modules) - before:
            if (folder / f"{name}.py").is_file():
                del sys.modules[name]


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path):
    mkdocs = ROOT / ".venv-docs" / "bin" / "mkdocs"
    if not mkdocs.is_file():
        pytest.skip("there is no .venv-docs, which make docs makes")
    command = [mkdocs, "build", "--strict", "--site-dir", tmp_path / "site"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = [path.read_text() for path in (tmp_path / "site").rglob("*.html")]
    assert len(pages) > 70
    fetched = {
        a for page in pages for a in re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"(https?:[^\"]+)", page)
    }
    assert not fetched
