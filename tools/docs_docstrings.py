"""An extension of griffe, which reads docstrings for the site: what the house style writes and Markdown would spoil.

- A paragraph in columns ("Forward    ...", as in the quantizers) stays as it is, as a block of text.
- "low, high: ends of the range" under `Args:` is one entry each.
"""

import re
from typing import Any

import griffe

COLUMNS = re.compile(r"\S+ {2,}\S")
SEVERAL = re.compile(r"^( {4})(\w+(?:, \w+)+): (.*(?:\n {8,}.*)*)", re.M)


def rewrite(text: str) -> str:
    """Return a docstring as griffe and Markdown are to read it."""
    text = SEVERAL.sub(lambda m: "\n".join(f"{m[1]}{name}: {m[3]}" for name in m[2].split(", ")), text)
    paragraphs = text.split("\n\n")
    return "\n\n".join(f"```text\n{p}\n```" if COLUMNS.match(p) else p for p in paragraphs)


class HouseStyle(griffe.Extension):
    """Called by griffe for each object that it reads."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite the object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = rewrite(obj.docstring.value)
