"""Files that are there whole or not at all: made in a folder beside their place, forced to the disk, moved there.

Symbolic links are written through: what they lead to is replaced, or made, and the links stay. Pipes and character
devices (/dev/null, /dev/stdout, a terminal) get the whole content once it is ready. No other node is touched.
"""

import errno
import json
import os
import re
import shutil
import stat
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any

TEMPORARY = ".tmp-"
LINKS = 40  # symbolic links to follow, as the kernel does
WAIT = 5.0  # seconds for another process' few moves; whoever holds a folder for longer does something else


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


def destination(path: Path) -> Path:
    """Where the symbolic links from `path` end: the file, pipe or character device that writing to it is about.

    Called before long work, too, to see that there is a place for what comes of it. FileNotFoundError,
    NotADirectoryError: no folder to be in. IsADirectoryError. PermissionError: a read-only file or folder. OSError: a
    block device, a socket, an open file of this process (/dev/stdout after `> FILE`), links in a circle.
    """
    end = _followed(path)
    what = f"{path} cannot be written" if end == path else f"{path}, a symbolic link to {end}, cannot be written"
    if not end.parent.is_dir():
        if end.parent.exists():
            raise NotADirectoryError(f"{what}: {end.parent} is no folder; give another name")
        raise FileNotFoundError(f"{what}: the folder {end.parent} does not exist; make it first")
    mode = _mode(end)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(f"{what}: it is a folder; expected a file's name")
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OSError(f"{what}: it is a {'block device' if stat.S_ISBLK(mode) else 'socket'}; expected a file's name")
    if _is_stream(mode):
        return end
    if end.is_symlink():
        raise OSError(f"{what}: it stands for a file that is open already; give that file's own name")
    for place in (end, end.parent) if mode else (end.parent,):
        if not os.access(place, os.W_OK):
            raise PermissionError(f"{what}: {place} is read-only; give another name, or make it writable")
    return end


def _followed(path: Path) -> Path:
    """Where its symbolic links end; those of /proc stand for what a process has open, which may have no name."""
    end = path
    for _ in range(LINKS):
        if not end.is_symlink() or os.path.realpath(end.parent).startswith("/proc/"):
            return end
        end = end.parent / os.readlink(end)
    raise OSError(f"{path} cannot be written: its symbolic links lead in a circle; remove them, or give another name")


def _mode(path: Path) -> int:
    """Kind and permissions; 0: nothing is there."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return 0


def _is_stream(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """A temporary path to write a file to; at the end it takes the place of `path`, with the permissions of what was
    there, after an exception it is removed. Of several writers at once the last one's file stays.

    OSError: as `destination`; nobody reads from the pipe. UserWarning: the file has other names, hard links, which
    keep what was there.
    """
    end = destination(path)
    if not _is_stream(_mode(end)):
        with placed_together(path) as (temporary,):
            yield temporary
        return
    with _stream(path, end) as stream, tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with temporary.open("rb") as whole:
            shutil.copyfileobj(whole, stream)


@contextmanager
def placed_together(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """The same for several files, which are of one writer even if others write them at the same time; the first of them
    is moved last. OSError: one of them is a pipe or a device, or two of them lead to one file."""
    ends = [destination(path) for path in paths]
    for path, end in zip(paths, ends, strict=True):
        if _is_stream(_mode(end)):
            raise OSError(f"{path} cannot be written: it is a pipe or a device; expected a name for one of two files")
        if end.exists() and (names := end.stat().st_nlink) > 1:
            kept = "another name keeps" if names == 2 else f"{names - 1} other names keep"
            warnings.warn(f"{path} is written anew; {kept} what was there (hard links)", stacklevel=5)
    if len({os.path.realpath(end) for end in ends}) < len(ends):
        raise OSError(f"{' and '.join(map(str, paths))} lead to one file; expected one of its own for each")
    with ExitStack() as stack:
        made = [stack.enter_context(_beside(end)) / path.name for path, end in zip(paths, ends, strict=True)]
        yield tuple(made)
        for temporary, end in zip(made, ends, strict=True):
            sync(temporary)
            _permit_as(end, temporary)
        with _alone(ends[0].parent) if len(ends) > 1 else nullcontext():
            for temporary, end in reversed(list(zip(made, ends, strict=True))):
                os.replace(temporary, end)
        for folder in {end.parent for end in ends}:
            sync(folder)


@contextmanager
def placed_folder(path: Path) -> Iterator[Path]:
    """The same for a folder of files; the folders above it are made. NotADirectoryError: `path` is something else."""
    end = _followed(path)
    if not stat.S_ISDIR(_mode(end) or stat.S_IFDIR):
        raise NotADirectoryError(f"{path} cannot be written: it is there, and no folder; give another name")
    end.parent.mkdir(parents=True, exist_ok=True)
    with _beside(end) as room:
        temporary, before = room / "new", room / "old"
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        while not _swapped(temporary, end, before):
            shutil.rmtree(before, ignore_errors=True)
        sync(end.parent)


def make_folder(path: Path) -> None:
    """Make the folder `path`, where a symbolic link leads to if it is one, and those above it, unless they are there.
    NotADirectoryError: something else is."""
    try:
        Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"{path} cannot be made: it is there, or one above it, and no folder") from None


def remove(folder: Path) -> None:
    """Remove `folder`, if it exists, or the symbolic link to one; what a crash leaves half-removed has a temporary
    name."""
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        if not folder.name.startswith(TEMPORARY):
            doomed = folder.with_name(TEMPORARY + "removed-" + folder.name)
            shutil.rmtree(doomed, ignore_errors=True)
            folder = folder.rename(doomed)
        shutil.rmtree(folder)


def _swapped(temporary: Path, end: Path, before: Path) -> bool:
    """Move the folder at `end`, if there is one, to `before`, and `temporary` there. False: another writer's came in
    between. OSError: all is as it was."""
    with suppress(FileNotFoundError):
        end.rename(before)
    try:
        temporary.rename(end)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            return False
        with suppress(FileNotFoundError):
            before.rename(end)
        raise
    return True


def _permit_as(before: Path, temporary: Path) -> None:
    """Give `temporary` the permissions of what it is going to replace, and its owner where that is allowed."""
    if before.exists():
        old = before.stat()
        for owner, group in ((old.st_uid, -1), (-1, old.st_gid)):
            with suppress(PermissionError):
                os.chown(temporary, owner, group)
        os.chmod(temporary, stat.S_IMODE(old.st_mode))


@contextmanager
def _stream(path: Path, end: Path) -> Iterator[Any]:
    """A pipe or character device, open for writing at once: the work is not done for nobody."""
    try:
        handle = os.open(end, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        why = "nobody reads from this pipe; start its reader first" if stat.S_ISFIFO(_mode(end)) else error.strerror
        raise OSError(f"{path} cannot be written: {why}") from error
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as stream:
        yield stream


@contextmanager
def _beside(end: Path) -> Iterator[Path]:
    """A folder beside `end`, to make it in. It is locked while it is in use: those that are not were left by a crash,
    and are removed."""
    name = TEMPORARY + os.fsdecode(os.fsencode(end.name)[:200])  # 255 bytes is the most that a name may have
    own = re.compile(re.escape(name) + r"(-\w{8})?")
    for left in [p for p in end.parent.iterdir() if own.fullmatch(p.name) and p.is_dir()]:
        with suppress(OSError), _opened(left) as handle:
            _lock(handle)
            shutil.rmtree(left)
    folder = Path(tempfile.mkdtemp(dir=end.parent, prefix=TEMPORARY))
    with _opened(folder) as handle:
        try:
            with suppress(OSError):  # not every file system has locks
                _lock(handle)
            random = folder.name.removeprefix(TEMPORARY)
            folder = folder.rename(end.with_name(f"{name}-{random}"))  # locked before others look for it
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time, as far as the file system has locks and nobody holds `folder` for other reasons."""
    with _opened(folder) as handle:
        until = time.monotonic() + WAIT
        while time.monotonic() < until:
            try:
                _lock(handle)
                break
            except BlockingIOError:
                time.sleep(0.01)
            except OSError:
                break
        yield


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    handle = os.open(path, os.O_RDONLY)
    try:
        yield handle
    finally:
        os.close(handle)


def _lock(handle: int) -> None:
    """Until it is closed. BlockingIOError: it is locked by another handle. OSError: there are no locks here."""
    import fcntl  # not on Windows

    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
