"""Help: of settings as rows, which are read from their class or come out of `index`, in tyro's form.

tyro never sees the classes themselves, of which it would import all, but one that is made of the rows.
"""

import ast
import inspect
import shutil
import textwrap
import typing
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import field, fields, is_dataclass, make_dataclass
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import tyro

METAVARS: dict[Any, str] = {
    **{int | None: "INT", float | None: "FLOAT", str | None: "STR", Path | None: "PATH"},
    **{tuple[int, ...]: "INT ...", tuple[str, ...]: "STR ..."},
}
"""{type: what help calls a value of it}; the text of an option says what None stands for"""


class SettingRow(NamedTuple):
    """A field of settings. value: its default, the rows of settings inside, or MISSING, where it has to be given."""

    name: str
    hint: Any
    text: str
    value: Any


def rows(kind: type, settings: Any = None) -> list[SettingRow]:
    """Return the fields of the dataclass `kind`; values: of `settings`, or the defaults if it is None."""
    hints, texts = typing.get_type_hints(kind, include_extras=True), field_texts(kind)
    content = []
    for f in fields(kind):
        value = f.default if settings is None else getattr(settings, f.name)
        inside = rows(type(value), value) if is_dataclass(value) else value
        content.append(SettingRow(f.name, hints[f.name], texts.get(f.name, ""), inside))
    return content


@cache
def field_texts(kind: type) -> dict[str, str]:
    """Return {field: the string that stands after it in the source}, each as one line."""
    texts = {}
    for base in reversed(kind.__mro__[:-1]):
        try:
            body = ast.parse(textwrap.dedent(inspect.getsource(base))).body[0].body  # type: ignore[attr-defined]
        except (OSError, TypeError):  # of a class that was made by a call
            continue
        for pair in pairwise(body):
            match pair:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                    texts[name] = " ".join(text.split())
    return texts


def print_help(prog: str, about: str, content: Sequence[SettingRow]) -> None:
    """Print what a command does, and what it takes.

    Args:
        prog: what the usage calls it.
        about: what it does; lines are filled up to the terminal's width, and one that begins with spaces is an entry.
        content: its settings.
    """
    width = shutil.get_terminal_size().columns
    for line in about.strip().splitlines():
        indent = "    " if line.startswith(" ") else ""
        print(textwrap.fill(line, width, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False))
    print()
    with suppress(SystemExit):
        tyro.cli(_stand_in(content), args=["--help"], prog=prog, description="")


def _stand_in(content: Sequence[SettingRow]) -> type:
    """Return a dataclass with these fields, of which tyro makes the help."""
    entries: list[Any] = []
    for row in content:
        kind, metadata = row.hint, getattr(row.hint, "__metadata__", ())
        kind = kind.__origin__ if metadata else kind
        value: Any = field(default=row.value)
        if isinstance(row.value, list):
            kind = _stand_in(row.value)
            value = field(default_factory=kind)
        hint = "" if row.value == () else None  # nothing, in place of "(default: )"
        display = tyro.conf.arg(help=row.text or None, metavar=METAVARS.get(kind), help_behavior_hint=hint)
        entries.append((row.name, Annotated[kind, display, *metadata], value))
    return make_dataclass("StandIn", entries, kw_only=True, namespace={"__module__": __name__})


def prose(text: str | None) -> str:
    """Return a docstring with its paragraphs as one line each."""
    return "\n\n".join(" ".join(part.split()) for part in inspect.cleandoc(text or "").split("\n\n"))


def parts_in_words(parts: Mapping[str, str], choices: Mapping[str, Sequence[str]]) -> str:
    """Return lines on the parts of a recipe that are chosen by name.

    Args:
        parts: {part: the name that is chosen}.
        choices: {part: names}.
    """
    lines = ["Parts chosen by name:"]
    for part, name in parts.items():
        others = [other for other in choices[part] if other != name]
        lines.append(f"  --{part} {name}, or {', '.join(others)}")
    return "\n".join([*lines, "  or an object of your own: package.module:Object or file.py:Object"])
