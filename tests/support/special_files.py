"""Places that a user may name for a file to be written: links, pipes, devices, folders; and what has to come of each.

Device nodes are made in the test's own folder, never those of the machine.
"""

import os
import re
import select
import socket
import stat
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

OLD = b"what was there before"


@dataclass(frozen=True)
class Place:
    """make: (a folder, a file's name) -> the path to write to. end: where the content has to be afterwards, below the
    folder, as a function of the name; None: nowhere. refused: what the error has to name, a pattern; None: no error.
    pipe: somebody reads from what is there."""

    make: Callable[[Path, str], Path]
    end: Callable[[str], str] | None = None
    refused: str | None = None
    pipe: bool = False


def _nothing(folder: Path, name: str) -> Path:
    return folder / name


def _old(folder: Path, name: str) -> Path:
    (folder / name).write_bytes(OLD)
    (folder / name).chmod(0o640)
    return folder / name


def _link(to: str, *, old: bool = False) -> Callable[[Path, str], Path]:
    def make(folder: Path, name: str) -> Path:
        (folder / "other").mkdir()
        if old:
            _old(folder, to)
        (folder / name).symlink_to(to)
        return folder / name

    return make


def _chain(folder: Path, name: str) -> Path:
    """A link to a link in another folder, whose target is relative to that folder."""
    (folder / "deep").mkdir()
    _old(folder, "end")
    (folder / "deep" / "middle").symlink_to("../end")
    (folder / name).symlink_to(folder / "deep" / "middle")
    return folder / name


def _below_link(folder: Path, name: str) -> Path:
    (folder / "real").mkdir()
    (folder / "linked").symlink_to("real")
    return folder / "linked" / name


def _circle(folder: Path, name: str) -> Path:
    (folder / name).symlink_to("b")
    (folder / "b").symlink_to(name)
    return folder / name


def _folder(folder: Path, name: str) -> Path:
    (folder / name).mkdir()
    (folder / name / "kept").write_bytes(OLD)
    return folder / name


def _link_to_folder(folder: Path, name: str) -> Path:
    _folder(folder, "there")
    (folder / name).symlink_to("there")
    return folder / name


def _below_file(folder: Path, name: str) -> Path:
    return _old(folder, "file") / name


def _fifo(folder: Path, name: str) -> Path:
    os.mkfifo(folder / name)
    return folder / name


def _link_to_fifo(folder: Path, name: str) -> Path:
    _fifo(folder, "pipe")
    (folder / name).symlink_to("pipe")
    return folder / name


def _socket(folder: Path, name: str) -> Path:
    with socket.socket(socket.AF_UNIX) as made, _inside(folder):  # its address may not be long
        made.bind(name)
    return folder / name


def _node(kind: int, major: int, minor: int) -> Callable[[Path, str], Path]:
    def make(folder: Path, name: str) -> Path:
        try:
            os.mknod(folder / name, kind | 0o666, os.makedev(major, minor))
            if stat.S_ISCHR(kind):
                os.close(os.open(folder / name, os.O_WRONLY))
        except OSError as error:
            pytest.skip(f"no device nodes can be made or opened here: {error}")
        return folder / name

    return make


def _link_to_null(folder: Path, name: str) -> Path:
    _node(stat.S_IFCHR, 1, 3)(folder, "null")
    (folder / name).symlink_to("null")
    return folder / name


PLACES = {
    "nothing": Place(_nothing, lambda name: name),
    "a file": Place(_old, lambda name: name),
    "a link to a file": Place(_link("other/end", old=True), lambda name: "other/end"),
    "a link to a link": Place(_chain, lambda name: "end"),
    "a dangling link": Place(_link("other/end"), lambda name: "other/end"),
    "a folder that is a link": Place(_below_link, lambda name: f"real/{name}"),
    "a circle of links": Place(_circle, refused="circle"),
    "a link to nowhere": Place(_link("nowhere/end"), refused="symbolic link to .*nowhere.* make it first"),
    "no folder": Place(lambda folder, name: folder / "nowhere" / name, refused="nowhere .*make it first"),
    "below a file": Place(_below_file, refused="/file is no folder"),
    "a folder": Place(_folder, refused="is a folder"),
    "a link to a folder": Place(_link_to_folder, refused="is a folder"),
    "a socket": Place(_socket, refused="socket"),
    "a block device": Place(_node(stat.S_IFBLK, 250, 250), refused="block device"),
    "a pipe that nobody reads": Place(_fifo, refused="nobody reads"),
    "a full device": Place(_node(stat.S_IFCHR, 1, 7), refused="No space"),
    "a pipe": Place(_fifo, pipe=True),
    "a link to a pipe": Place(_link_to_fifo, pipe=True),
    "a device": Place(_node(stat.S_IFCHR, 1, 3)),
    "a link to a device": Place(_link_to_null),
}
"""{what is there: what comes of writing to it}"""
STREAMS = ("a pipe", "a link to a pipe", "a device", "a link to a device", "a pipe that nobody reads", "a full device")


def nodes(folder: Path) -> dict[str, tuple[int, str | None, bytes | None]]:
    """Everything below `folder`: (kind and permissions, where a link leads to, what a file holds)."""
    found = {}
    for path in sorted(folder.rglob("*")):
        mode = path.lstat().st_mode
        content = path.read_bytes() if stat.S_ISREG(mode) else None
        found[str(path.relative_to(folder))] = (mode, os.readlink(path) if path.is_symlink() else None, content)
    return found


def check_place(what: str, write: Callable[[Path], object], folder: Path, name: str, expected: bytes | None) -> None:
    """Call `write` with a path where `what` of `PLACES` is, and see that what has to come of it did: the content
    `expected` (None: any) where it belongs, all else as it was."""
    place = PLACES[what]
    path = place.make(folder, name)
    before = nodes(folder)
    if place.refused is not None:
        with pytest.raises(OSError) as error:
            write(path)
        assert re.search(place.refused, str(error.value)) and name in str(error.value)
        assert nodes(folder) == before
        return
    if place.pipe:
        with read_from(path) as content:
            write(path)
        assert b"".join(content) == expected if expected is not None else b"".join(content)
    else:
        write(path)
    after = nodes(folder)
    if place.end is not None:
        end = place.end(name)
        mode, _, content = after.pop(end)
        assert stat.S_ISREG(mode) and content and content != OLD and expected in (None, content)
        assert before.pop(end, (mode,))[0] == mode  # its permissions stay
    assert after == before


@contextmanager
def read_from(pipe: Path) -> Iterator[list[bytes]]:
    """What another thread reads from `pipe` until its first writer is done."""
    content: list[bytes] = []
    handle = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    ready = select.poll()
    ready.register(handle)

    def read() -> None:
        while ready.poll(100_000) and (block := os.read(handle, 1 << 16)):
            content.append(block)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    yield content
    reader.join()
    os.close(handle)


def at_once(writers: list[Callable[[], object]]) -> list[OSError]:
    """Call all of them at the same moment, in threads; the errors."""
    barrier, errors = threading.Barrier(len(writers)), []

    def run(write: Callable[[], object]) -> None:
        barrier.wait()
        try:
            write()
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(write,)) for write in writers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


@contextmanager
def _inside(folder: Path) -> Iterator[None]:
    here = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(here)


@contextmanager
def as_nobody() -> Iterator[None]:
    """Inside, this process has no more rights than others, even where the tests run as root."""
    if os.getuid():
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
