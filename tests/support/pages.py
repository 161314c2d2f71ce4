"""Pages of the documentation: their links, their commands, and the Python that they show."""

import ast
import builtins
import importlib
import importlib.util
import inspect
import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FENCE = re.compile(r"^```(\w*)(?: title=\"([^\"]+)\")?\n(.*?)^```$", re.M | re.S)
LINK = re.compile(r"\]\(([^)\s#]*)(?:#([^)\s]*))?\)")
UNSEEN = object()
"""What a name stands for that is not looked into."""
HEAVY = ("spequant.integrations",)
"""Rooms whose import takes seconds: only their names are checked."""


@dataclass(frozen=True)
class Block:
    """A fenced block; title: the file that a reader puts it into."""

    language: str
    title: str
    text: str


@dataclass(frozen=True)
class Page:
    """A file of Markdown."""

    path: Path

    def __str__(self) -> str:
        return self.path.as_posix().removeprefix(f"{ROOT.as_posix()}/")

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        return FENCE.sub("", self.text)

    @property
    def blocks(self) -> list[Block]:
        return [Block(*parts) for parts in FENCE.findall(self.text)]

    @property
    def python(self) -> list[Block]:
        return [block for block in self.blocks if block.language == "python"]

    @property
    def links(self) -> list[tuple[str, str]]:
        """(target, anchor) of each link that is no address."""
        return [link for link in LINK.findall(self.prose) if not re.match(r"[a-z]+:", link[0])]

    @cached_property
    def anchors(self) -> set[str]:
        """What links may name: the headings, as GitHub and mkdocs write them."""
        headings = re.findall(r"^#+ (.+)$", self.prose, re.M)
        plain = [re.sub(r"[^\w\s-]", "", re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", h)).strip().lower() for h in headings]
        return {re.sub(r"[-\s]+", "-", heading) for heading in plain}

    def write_files(self, folder: Path) -> None:
        """Write the blocks with a title into `folder`."""
        for block in self.python:
            if block.title:
                (folder / block.title).write_text(block.text)

    def lines(self, start: str) -> list[str]:
        """Lines of shell blocks that begin with `start`, continued ones joined."""
        shell = "".join(block.text for block in self.blocks if block.language in ("", "bash"))
        return [line for line in shell.replace("\\\n", " ").splitlines() if re.match(start, line)]

    def commands(self) -> list[list[str]]:
        """The words of each command line of spequant, in blocks or between backquotes, without `spequant`."""
        own = [line.partition("spequant ")[2] for line in self.lines(r"spequant |.* -m spequant ")]
        inline = re.findall(r"`spequant ([^`]+)`", self.prose)
        return [_words(line) for line in (*own, *inline)]


def _words(line: str) -> list[str]:
    words = shlex.split(line, comments=True)
    end = next((i for i, word in enumerate(words) if word in (">", "|", ";")), len(words))
    return [word.strip("[]") for word in words[:end] if word != "..."]


def mistakes_in(page: Page) -> list[str]:
    """Names, attributes and keyword arguments of a page's Python that do not exist; nothing of the page runs."""
    files = {Path(b.title).stem: _binds(ast.parse(b.text)) for b in page.python if b.title}
    mistakes: list[str] = []
    together: dict[str, Any] = {}
    for block in page.python:
        names = {} if block.title else together
        mistakes += _Reader(names, files).read(ast.parse(block.text, str(page)))
    return mistakes


def _binds(tree: ast.AST) -> set[str]:
    """Names that some statement of `tree` gives a value."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.arg):
            names.add(node.arg)
        elif isinstance(node, ast.alias):
            names.add((node.asname or node.name).partition(".")[0])
    return names


class _Reader:
    """Looks the names of one block up. names: what those of the blocks before stand for; files: names in own files."""

    def __init__(self, names: dict[str, Any], files: dict[str, set[str]]):
        self.names, self.files = names, files
        self.mistakes: list[str] = []

    def read(self, tree: ast.AST) -> list[str]:
        for name in _binds(tree):
            self.names[name] = UNSEEN
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    module = self.module(alias.name)
                    top = alias.name.partition(".")[0]
                    self.names[alias.asname or top] = module if alias.asname else self.module(top)
            elif isinstance(node, ast.ImportFrom):
                self.read_from(node)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and node.id not in self.names and not hasattr(builtins, node.id):
                self.mistakes.append(f"{node.id} is not defined")
            elif isinstance(node, ast.Attribute):
                self.value(node)
            elif isinstance(node, ast.Call):
                self.check_call(node)
        return self.mistakes

    def module(self, name: str) -> Any:
        top = name.partition(".")[0]
        if top in ("spequant", "torch") and name not in HEAVY:
            return importlib.import_module(name)
        if top not in self.files and top not in ("lightning",) and importlib.util.find_spec(top) is None:
            self.mistakes.append(f"there is no module {name}")
        return UNSEEN

    def read_from(self, node: ast.ImportFrom) -> None:
        name = node.module or ""
        module = self.module(name)
        names_in_it = self.files.get(name)
        if name in HEAVY:
            source = ROOT / "src" / name.replace(".", "/") / "__init__.py"
            names_in_it = _binds(ast.parse(source.read_text()))
        for alias in node.names:
            value = UNSEEN
            if names_in_it is not None and alias.name not in names_in_it:
                self.mistakes.append(f"{name} has no {alias.name}")
            elif isinstance(module, ModuleType):
                value = self.attribute(module, alias.name)
            self.names[alias.asname or alias.name] = value

    def attribute(self, thing: Any, name: str) -> Any:
        """An attribute of a module or class; what an instance has is not known."""
        if not isinstance(thing, ModuleType | type):
            return UNSEEN
        if not hasattr(thing, name):
            self.mistakes.append(f"{thing.__name__} has no {name}")
        return getattr(thing, name, UNSEEN)

    def value(self, node: ast.AST) -> Any:
        if isinstance(node, ast.Name):
            return self.names.get(node.id, UNSEEN)
        if isinstance(node, ast.Attribute):
            return self.attribute(self.value(node.value), node.attr)
        return UNSEEN

    def check_call(self, node: ast.Call) -> None:
        function = self.value(node.func)
        if not str(getattr(function, "__module__", "")).startswith("spequant"):
            return
        parameters = inspect.signature(function).parameters
        if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            return
        for word in node.keywords:
            if word.arg is not None and word.arg not in parameters:
                self.mistakes.append(f"{ast.unparse(node.func)} takes no {word.arg}")
