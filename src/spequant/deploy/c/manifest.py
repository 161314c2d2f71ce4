"""Files of C programs: their parts as this package has them, and the manifest of a folder of them."""

import json
import re
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from spequant.deploy.seal import check_seal

MANIFEST = "manifest.json"
VERSION = 1


@cache
def kernel(name: str) -> str:
    """Text of a kernel's file."""
    return (files("spequant.deploy.c") / "kernels" / f"{name}.c").read_text(encoding="utf-8")


def renamed(text: str, name: str) -> str:
    """`text` whose names begin with `name` in place of net."""
    text = re.sub(r"\bnet(?=_|\.[ch]\b)", name, text)
    return re.sub(r"\bNET(?=_)", name.upper(), text)


def identifier(path: Path) -> str:
    """What names in C begin with, of a folder's name."""
    name = re.sub(r"\W", "_", path.name.split(".")[0], flags=re.ASCII).lower() or "net"
    return f"n{name}" if name[0].isdigit() or name[0] == "_" else name


def read_manifest(folder: Path) -> dict[str, Any]:
    """FileNotFoundError: a file of it is missing. ValueError: changed, damaged, or not written by this project."""
    data = (folder / MANIFEST).read_bytes()
    try:
        head = json.loads(data)
        name, version = head["name"], head["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / MANIFEST} does not say what it is of ({error}); export it anew") from error
    if version != VERSION:
        raise ValueError(f"{folder / MANIFEST} has the version {version}; expected {VERSION}: install a newer spequant")
    names = sorted((f"{name}.h", f"{name}.c", f"{name}_test.c", "CMakeLists.txt"))
    check_seal(folder / MANIFEST, data, *((folder / file).read_bytes() for file in names))
    return head
