"""Names: the objects that they stand for, near ones where one is wrong, many of them in a few words."""

import difflib
import importlib
import importlib.util
import inspect
import sys
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

Thing = TypeVar("Thing")
FROM_FILE = "spequant_file_"
"""How the names of modules begin that were imported from a file outside of any package."""


def named_or_imported(argument: str, name: str, things: Mapping[str, Thing]) -> Thing | Any:
    """What `name` stands for: an entry of `things`, or the object of a reference (`imported`).

    Raises:
        ValueError: neither; the message has `argument`, and names near to `name`.
    """
    if name in things:
        return things[name]
    if ":" in name:
        return imported(name)
    raise ValueError(
        f"{argument} is {name!r}; {nearest(name, list(things))} (an object of your own: package.module:Object or "
        "file.py:Object)"
    )


def imported(reference: str) -> Any:
    """The object of a reference: "package.module:Object", of the working folder or an installed package, or
    "file.py:Object". `Object` may have dots in it: "package.module:Class.Settings".

    Raises:
        ValueError: no such form, module, file or object, or a module that fails; what was looked for, and where.
    """
    place, _, name = reference.rpartition(":")
    if not place or not name:
        raise ValueError(f"{reference!r} names no object; expected package.module:Object or file.py:Object")
    thing: Any = _from_file(reference, Path(place)) if place.endswith(".py") else _from_module(reference, place)
    source = getattr(thing, "__file__", None) or place
    for part in name.split("."):
        if not hasattr(thing, part):
            names = [n for n in vars(thing) if not n.startswith("_")]
            raise ValueError(f"{reference}: {source} has no {name!r}; {nearest(part, names)}")
        thing = getattr(thing, part)
    return thing


def reference_to(thing: Any) -> str:
    """The reference by which `imported` finds a class or function again."""
    module = sys.modules[thing.__module__]
    file = getattr(module, "__file__", None)
    from_file = module.__name__.startswith(FROM_FILE) or (module.__name__ == "__main__" and module.__spec__ is None)
    return f"{file if from_file and file else module.__name__}:{thing.__qualname__}"


def called_with(make: Callable[..., Any], at_hand: Mapping[str, Any], what: str) -> Any:
    """`make`, called with those of `at_hand` that its signature names. ValueError: it needs others."""
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except ValueError:  # of a class written in C
        return make()
    every = any(p.kind is p.VAR_KEYWORD for p in parameters)
    arguments = {n: v for n, v in at_hand.items() if every or any(p.name == n for p in parameters)}
    needed = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    missing = [p.name for p in needed if p.name not in arguments]
    if missing:
        expected = f"parameters among {', '.join(at_hand)}" if at_hand else "a default for each parameter"
        raise ValueError(f"{what} needs {', '.join(missing)}; expected {expected}")
    return make(**arguments)


def nearest(word: str, names: Sequence[str]) -> str:
    """A hint on a misspelt word: "did you mean ...?", or all that is known."""
    close = difflib.get_close_matches(word, names, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(close)}?" if close else f"expected {some_of(names, 20)}"


def some_of(names: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """The first `most` of `names`, and how many more there are: "a, b, c and 2 more"."""
    more = len(names) - most
    return separator.join(names[:most]) + (f" and {more} more" if more > 0 else "")


def _from_module(reference: str, name: str) -> ModuleType:
    with _searched(Path.cwd()):
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise ValueError(f"{reference}: importing {name} failed: {error}") from error
            raise ValueError(
                f"{reference}: there is no module {name}, neither in the working folder {Path.cwd()} nor among the "
                f"installed packages; of a file elsewhere give its path, folder/file.py:{reference.rpartition(':')[2]}"
            ) from error
        except Exception as error:
            raise ValueError(f"{reference}: importing {name} failed: {type(error).__name__}: {error}") from error


def _from_file(reference: str, path: Path) -> ModuleType:
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"{reference}: there is no file {path}")
    name = f"{FROM_FILE}{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    with _searched(path.parent):
        try:
            spec.loader.exec_module(module)
        except BaseException as error:
            del sys.modules[name]
            if not isinstance(error, Exception):
                raise
            raise ValueError(f"{reference}: {path} failed: {type(error).__name__}: {error}") from error
    return module


@contextmanager
def _searched(folder: Path) -> Iterator[None]:
    """Inside, modules are looked for in `folder` first."""
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
