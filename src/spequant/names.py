"""Names: how messages put them into words, and how a name becomes an object. No message itself lives here."""

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any


def some_of(names: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """The first `most` of `names`, and how many more there are: "a, b, c and 2 more"."""
    more = len(names) - most
    return separator.join(names[:most]) + (f" and {more} more" if more > 0 else "")


def imported(reference: str) -> Any:
    """The object that `reference` names.

    Args:
        reference: "package.module:Object", of the working folder or an installed package; or "file.py:Object", a file's
            path from the working folder. Object may be "Class.attribute".

    Raises:
        ValueError: says what was looked for, and where.

    Example:
        imported("networks.py:make_network")
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ValueError(f"{reference!r} names no object; expected package.module:Object or file.py:Object")
    value: Any = _module(reference, place)
    for part in name.split("."):
        if not hasattr(value, part):
            where = getattr(value, "__file__", None) or place
            raise ValueError(f"{reference!r}: {where} has no {name}; expected the name of an object in it")
        value = getattr(value, part)
    return value


def _module(reference: str, place: str) -> ModuleType:
    path = Path(place).resolve()
    is_file = place.endswith(".py")
    if is_file and not path.is_file():
        raise ValueError(f"{reference!r}: there is no file {path}")
    try:
        with _first_on_path(path.parent if is_file else Path.cwd()):
            return _of_file(path) if is_file else import_module(place)
    except ModuleNotFoundError as error:
        if is_file or not f"{place}.".startswith(f"{error.name}."):
            raise ValueError(f"{reference!r}: {place} needs the module {error.name}, which is not installed") from error
        raise ValueError(
            f"{reference!r}: there is no module {error.name}, neither in the working folder {os.getcwd()} nor among "
            "the installed packages"
        ) from error
    except Exception as error:
        raise ValueError(f"{reference!r}: importing {place} failed: {error!r}") from error


def _of_file(path: Path) -> ModuleType:
    spec = spec_from_file_location(f"{path.stem} in {path.parent}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@contextmanager
def _first_on_path(folder: Path) -> Iterator[None]:
    """Inside, `folder` is where modules are looked for first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
