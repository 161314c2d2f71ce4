"""Files that are there whole or not at all: written beside their place, forced to the disk, moved there."""

import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """`path` holds `text`, or what it held before."""
    with placed(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path | None, content: Any) -> None:
    """`path` holds `content` as JSON, or what it held before; None: nothing."""
    if path is not None:
        write_whole(path, json.dumps(content, indent=2))


def check_parent(path: Path) -> None:
    """FileNotFoundError unless the folder that `path` is to be in exists."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path} cannot be written: the folder {path.parent} does not exist; make it first")


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write a file to; at the end it takes the place of `path`, after an exception
    it is removed. FileNotFoundError: there is no folder for it."""
    check_parent(path)
    temporary = path.with_name(TEMPORARY + path.name)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def placed_folder(path: Path) -> Iterator[Path]:
    """The same for a new folder of files."""
    temporary = path.with_name(TEMPORARY + path.name)
    remove(temporary)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        remove(path)
        os.rename(temporary, path)
        sync(path.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def remove(folder: Path) -> None:
    """Remove `folder`, if it exists; what a crash leaves half-removed has a temporary name."""
    if folder.exists():
        if not folder.name.startswith(TEMPORARY):
            doomed = folder.with_name(TEMPORARY + "removed-" + folder.name)
            shutil.rmtree(doomed, ignore_errors=True)
            folder = folder.rename(doomed)
        shutil.rmtree(folder)
