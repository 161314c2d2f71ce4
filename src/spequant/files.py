"""Files and folders that appear complete or not at all.

They are written to a temporary folder next to their destination, forced to the disk, and then moved to the destination.
Symbolic links stay: the file that a link leads to is replaced, or created. Pipes and character devices (/dev/null,
/dev/stdout, a terminal) get the whole content once it is complete. No other kind of file is written to.
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
"""First characters of the names of temporary folders."""
LINKS = 40
"""Symbolic links in a row to follow, as many as the kernel follows."""
WAIT = 5.0
"""Seconds to wait for a folder's lock. Another writer needs it only for a few moves; a longer lock is no writer's."""


def sync(path: Path) -> None:
    """Force the content of a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_whole(path: Path, text: str) -> None:
    """Write `text` to `path`; after an exception the file is as it was. Errors: as in `placed`."""
    with placed(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path | None, content: Any) -> None:
    """Write `content` to `path` as JSON, or nothing if `path` is None; after an exception the file is as it was."""
    if path is not None:
        write_whole(path, json.dumps(content, indent=2))


def destination(path: Path) -> Path:
    """Return the file, pipe or character device that `path` leads to, after a check that it can be written.

    Also called before long work, to find out early that its result could not be written.

    Raises:
        FileNotFoundError: the folder of the file does not exist.
        NotADirectoryError: the folder of the file is not a folder.
        IsADirectoryError: `path` is a folder.
        PermissionError: the file or its folder is read-only.
        OSError: a block device, a socket, a file that is open already (/dev/stdout after `> FILE`), or symbolic links
            that lead in a circle.
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
    """Return where the symbolic links from `path` end.

    Links in /proc are not followed: they stand for an open file of a process, which may have no name.
    """
    end = path
    for _ in range(LINKS):
        if not end.is_symlink() or os.path.realpath(end.parent).startswith("/proc/"):
            return end
        end = end.parent / os.readlink(end)
    raise OSError(f"{path} cannot be written: its symbolic links lead in a circle; remove them, or give another name")


def _mode(path: Path) -> int:
    """Return kind and permissions, or 0 if nothing exists at `path`."""
    try:
        return os.stat(path).st_mode
    except FileNotFoundError:
        return 0


def _is_stream(mode: int) -> bool:
    return stat.S_ISFIFO(mode) or stat.S_ISCHR(mode)


@contextmanager
def placed(path: Path) -> Iterator[Path]:
    """Give a temporary path to write to, and move that file to `path` at the end of the block.

    The new file gets the permissions of the one that it replaces. After an exception it is removed instead. If several
    writers work at the same time, the file of the last one stays. There is a UserWarning if the old file has other
    names (hard links), since these keep the old content.

    Raises:
        OSError: as in `destination`; or `path` is a pipe that nobody reads from.
    """
    end = destination(path)
    if not _is_stream(_mode(end)):
        with placed_together(path) as (temporary,):
            yield temporary
        return
    with _stream(path, end) as stream, tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / path.name
        yield temporary
        with temporary.open("rb") as content:
            shutil.copyfileobj(content, stream)


@contextmanager
def placed_together(*paths: Path) -> Iterator[tuple[Path, ...]]:
    """Do the same as `placed` for several files that belong together.

    If several writers work at the same time, all files that stay are of the same writer. The first file is moved last.

    Raises:
        OSError: as in `placed`; or one path is a pipe or a device, or two paths lead to the same file.
    """
    ends = [destination(path) for path in paths]
    for path, end in zip(paths, ends, strict=True):
        if _is_stream(_mode(end)):
            raise OSError(f"{path} cannot be written: it is a pipe or a device; expected a name for one of two files")
        if end.exists() and (names := end.stat().st_nlink) > 1:
            others = "another name keeps" if names == 2 else f"{names - 1} other names keep"
            warnings.warn(f"{path} is written anew; {others} what was there (hard links)", stacklevel=5)
    if len({os.path.realpath(end) for end in ends}) < len(ends):
        raise OSError(f"{' and '.join(map(str, paths))} lead to one file; expected one of its own for each")
    with ExitStack() as stack:
        files = [stack.enter_context(_temporary_folder(end)) / path.name for path, end in zip(paths, ends, strict=True)]
        yield tuple(files)
        for temporary, end in zip(files, ends, strict=True):
            sync(temporary)
            _permit_as(end, temporary)
        with _locked(ends[0].parent) if len(ends) > 1 else nullcontext():
            for temporary, end in reversed(list(zip(files, ends, strict=True))):
                os.replace(temporary, end)
        for folder in {end.parent for end in ends}:
            sync(folder)


@contextmanager
def placed_folder(path: Path) -> Iterator[Path]:
    """Do the same as `placed` for a folder of files; missing folders above it are created.

    Raises:
        NotADirectoryError: `path` exists and is not a folder.
    """
    end = _followed(path)
    if not stat.S_ISDIR(_mode(end) or stat.S_IFDIR):
        raise NotADirectoryError(f"{path} cannot be written: it exists and is no folder; give another name")
    end.parent.mkdir(parents=True, exist_ok=True)
    with _temporary_folder(end) as folder:
        temporary, before = folder / "new", folder / "old"
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            sync(file)
        sync(temporary)
        while not _swapped(temporary, end, before):
            shutil.rmtree(before, ignore_errors=True)
        sync(end.parent)


def destination_folder(path: Path) -> Path:
    """Return the folder that `path` leads to, after a check that `placed_folder` can write it.

    Raises:
        NotADirectoryError: `path`, or something above it, exists and is no folder.
        PermissionError: the folder above it is read-only.
        OSError: symbolic links that lead in a circle.
    """
    end = _followed(path)
    if not stat.S_ISDIR(_mode(end) or stat.S_IFDIR):
        raise NotADirectoryError(f"{path} cannot be written: it exists and is no folder; give another name")
    above = next(folder for folder in end.parents if folder.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{path} cannot be written: {above} is no folder; give another name")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{path} cannot be written: {above} is read-only; give another name, or make it writable")
    return end


def make_folder(path: Path) -> None:
    """Create the folder `path` and the folders above it, where they do not exist; symbolic links are followed.

    Raises:
        NotADirectoryError: `path`, or something above it, exists and is not a folder.
    """
    try:
        Path(os.path.realpath(path)).mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise NotADirectoryError(f"{path} cannot be made: it, or a name above it, exists and is no folder") from None


def remove(folder: Path) -> None:
    """Remove `folder` if it exists; if it is a symbolic link, only the link.

    The folder first gets a temporary name, so that a crash leaves no incomplete folder under its own name.
    """
    if folder.is_symlink():
        folder.unlink()
    elif folder.exists():
        if not folder.name.startswith(TEMPORARY):
            doomed = folder.with_name(TEMPORARY + "removed-" + folder.name)
            shutil.rmtree(doomed, ignore_errors=True)
            folder = folder.rename(doomed)
        shutil.rmtree(folder)


def _swapped(temporary: Path, end: Path, before: Path) -> bool:
    """Move the folder at `end`, if it exists, to `before`, and `temporary` to `end`.

    Return False if another writer has put a folder there in between. After an OSError all is as it was.
    """
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
    """Give `temporary` the permissions of the file that it will replace, and the owner where that is allowed."""
    if before.exists():
        old = before.stat()
        for owner, group in ((old.st_uid, -1), (-1, old.st_gid)):
            with suppress(PermissionError):
                os.chown(temporary, owner, group)
        os.chmod(temporary, stat.S_IMODE(old.st_mode))


@contextmanager
def _stream(path: Path, end: Path) -> Iterator[Any]:
    """Open a pipe or character device for writing, now: a pipe without a reader is an error before the work begins."""
    try:
        handle = os.open(end, os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        why = "nobody reads from this pipe; start its reader first" if stat.S_ISFIFO(_mode(end)) else error.strerror
        raise OSError(f"{path} cannot be written: {why}") from error
    os.set_blocking(handle, True)
    with os.fdopen(handle, "wb") as stream:
        yield stream


@contextmanager
def _temporary_folder(end: Path) -> Iterator[Path]:
    """Create a temporary folder next to `end`, and lock it while it is in use.

    Folders of the same name without a lock were left by a crash, and are removed.
    """
    name = TEMPORARY + os.fsdecode(os.fsencode(end.name)[:200])  # a name may have 255 bytes
    pattern = re.compile(re.escape(name) + r"(-\w{8})?")
    for leftover in [p for p in end.parent.iterdir() if pattern.fullmatch(p.name) and p.is_dir()]:
        with suppress(OSError), _opened(leftover) as handle:
            _lock(handle)
            shutil.rmtree(leftover)
    folder = Path(tempfile.mkdtemp(dir=end.parent, prefix=TEMPORARY))
    with _opened(folder) as handle:
        try:
            with suppress(OSError):  # not every file system has locks
                _lock(handle)
            random = folder.name.removeprefix(TEMPORARY)
            folder = folder.rename(end.with_name(f"{name}-{random}"))  # only now others can find it, and it is locked
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time into the block, if the file system has locks and nobody else keeps `folder` locked."""
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
    """Lock the file of `handle` until it is closed.

    BlockingIOError: another handle has the lock. OSError: the file system has no locks.
    """
    import fcntl  # does not exist on Windows

    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
