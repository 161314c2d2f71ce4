"""The house rules that a machine can check: sizes, names, docstrings, import contracts, no registry addresses."""

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "spequant"
MODULES = sorted(SOURCE.rglob("*.py"))
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60
# Bracketed where the pattern would otherwise find itself here.
REGISTRY = re.compile(
    r"""https?://[^\s"']*/simple\b|--(extra-)?index-url|--find[-]links|files[.]pythonhosted[.]org|registry[.]npmjs"""
)


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def test_the_source_is_where_these_tests_look():
    assert SOURCE / "__init__.py" in MODULES


def test_module_opens_with_a_docstring_and_stays_short():
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines = len(text.splitlines())
        assert ast.get_docstring(tree), f"{_name(path)} has no docstring: say what lives here and what may not"
        assert lines <= MAX_FILE_LINES, f"{_name(path)} has {lines} lines, more than {MAX_FILE_LINES}: split it by idea"
        long = [
            f"{node.name} (line {node.lineno}, {node.end_lineno - node.lineno + 1} lines)"
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            and node.end_lineno is not None
            and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
        ]
        assert not long, f"{_name(path)}: functions over {MAX_FUNCTION_LINES} lines: {', '.join(long)}"


def test_no_module_without_a_subject():
    homeless = [
        _name(p) for p in MODULES if p.stem.strip("_") in {"utils", "util", "common", "helpers", "helper", "misc"}
    ]
    assert not homeless, f"a helper without a home is a missing noun: {homeless}"


def test_no_name_of_a_package_hides_a_module():
    for path in MODULES:
        if path.name == "__init__.py":
            names = {
                alias.asname or alias.name
                for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
                if node.module != f"spequant.{'.'.join(path.parent.relative_to(SOURCE).parts)}"
            }
            modules = {p.stem for p in path.parent.glob("*.py")} | {p.parent.name for p in path.parent.glob("*/*.py")}
            assert not names & modules, f"{_name(path)}: {names & modules} hide the modules of these names"


def test_no_registry_addresses():
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout, to know which files are the project's")
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    found = []
    for name in sorted(set(filter(None, names))):
        path = ROOT / name
        if path.is_file() and not path.is_symlink():
            match = REGISTRY.search(path.read_bytes().decode("utf-8", errors="replace"))
            if match:
                found.append(f"{name}: {match.group()}")
    assert not found, f"index addresses or options belong to the machine, not to the project: {found}"


def test_import_contracts_hold():
    program = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"lint-imports:\n{done.stdout}{done.stderr}"
