"""The rules that the tests keep: a reader finds a test without a search, and a message may be worded anew."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTS, SOURCE = ROOT / "tests", ROOT / "src" / "spequant"
SCRIPTS = ("tools", "benchmarks")
"""folders of programs that are run by their path"""
WHOLE = TESTS / "whole"
FILES = sorted(TESTS.rglob("test_*.py"))
MODULES = sorted(p for p in SOURCE.rglob("*.py") if not p.stem.startswith("__"))
WORDS = 4
"""of prose in a row that `match` may name: it names the argument and the value, not the sentence about them"""


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def _mirrors(module: Path) -> tuple[Path, Path]:
    """Where tests of src/spequant/x/y.py are: tests/x/test_y.py, or tests/x/test_x.py with those of the whole room."""
    own = TESTS / module.relative_to(SOURCE).with_name(f"test_{module.name}")
    return own, own.with_name(f"test_{own.parent.name}.py")


def test_a_module_has_its_tests_where_a_reader_looks():
    for module in MODULES:
        own, room = _mirrors(module)
        assert own.is_file() or room.is_file(), f"neither {_name(own)} nor {_name(room)} exists"


def test_a_file_of_tests_mirrors_a_module_a_room_or_a_capability():
    for path in FILES:
        if path.parent == WHOLE:
            assert ast.get_docstring(ast.parse(path.read_text())), f"{_name(path)}: say which capability it is about"
            continue
        if path.parent.name in SCRIPTS:
            assert (ROOT / path.parent.name / path.name.removeprefix("test_")).is_file()
            continue
        folder, name = SOURCE / path.parent.relative_to(TESTS), path.stem.removeprefix("test_")
        there = (folder / f"{name}.py").is_file() or name == path.parent.name
        assert there, f"{_name(path)} mirrors no file of {_name(folder)}: name it after one, or move it to tests/whole"


def test_no_test_module_imports_another():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            found = [n for n in names if any(part.startswith("test_") for part in n.split("."))]
            assert not found, f"{_name(path)} imports {found}: what is shared lives in tests/support"
        in_scripts = re.findall(r"^(?:from|import) test_\w+", path.read_text(), re.M)
        assert not in_scripts, f"{_name(path)} has scripts with {in_scripts}: what is shared lives in tests/support"


def _private() -> set[str]:
    """Names with one leading underscore that the source defines: functions, classes, methods, attributes of self."""
    found = set()
    for module in MODULES:
        for node in ast.walk(ast.parse(module.read_text())):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(node.name)
            elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                found.add(node.attr)
            elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.add(node.id)
    return {name for name in found if re.fullmatch(r"_[a-z]\w*|_[A-Z]\w*", name)}


PRIVATE = _private()


def test_no_private_name_of_the_source_is_tested():
    for path in FILES:
        text = path.read_text()
        used = {node.attr for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ImportFrom):
                used |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # monkeypatch's names, scripts
                used |= set(re.findall(r"\.(_[a-zA-Z]\w*)", node.value)) | set(re.findall(r"^(_[a-z]\w*)$", node.value))
        assert not used & PRIVATE, f"{_name(path)} reads {sorted(used & PRIVATE)}: test what is public"


def test_messages_are_matched_by_what_they_name():
    for path in FILES:
        long = []
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.keyword) and node.arg == "match":
                strings = [
                    n.value for n in ast.walk(node.value) if isinstance(n, ast.Constant) and isinstance(n.value, str)
                ]
                long += [s for s in strings if re.search(rf"(?:\b[A-Za-z]+,? ){{{WORDS},}}[A-Za-z]+", s)]
        assert not long, f"{_name(path)}: more than {WORDS} words in a row: {long}"
