"""Files and folders that appear complete or not at all: links, pipes and devices, several writers at once."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from spequant.files import (
    TEMPORARY,
    destination,
    make_folder,
    placed,
    placed_folder,
    placed_together,
    remove,
    write_json,
    write_whole,
)
from support.special_files import OLD, PLACES, STREAMS, as_nobody, at_once, check_place, nodes


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def test_a_file_is_moved_to_its_place_at_the_end(tmp_path):
    write_whole(tmp_path / "a", "old")
    with placed(tmp_path / "a") as temporary:
        temporary.write_text("new")
        assert (tmp_path / "a").read_text() == "old" and temporary.is_relative_to(tmp_path)
    assert (tmp_path / "a").read_text() == "new" and names(tmp_path) == ["a"]


def test_after_an_exception_the_old_file_stays(tmp_path):
    write_whole(tmp_path / "a", "old")
    with pytest.raises(KeyboardInterrupt), placed(tmp_path / "a") as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(KeyboardInterrupt), placed_folder(tmp_path / "f") as temporary:
        (temporary / "b").write_text("half")
        raise KeyboardInterrupt
    assert (tmp_path / "a").read_text() == "old" and names(tmp_path) == ["a"]


def test_a_folder_replaces_another(tmp_path):
    for content in ("one", "two"):
        with placed_folder(tmp_path / "f") as temporary:
            (temporary / content).write_text(content)
        assert names(tmp_path) == ["f"] and names(tmp_path / "f") == [content]


def test_leftovers_of_a_crash_are_removed(tmp_path):
    leftover = tmp_path / f"{TEMPORARY}f"
    leftover.mkdir()
    (leftover / "half").write_text("")
    with placed_folder(tmp_path / "f") as temporary:
        (temporary / "whole").write_text("")
    assert names(tmp_path) == ["f"] and names(tmp_path / "f") == ["whole"]
    (tmp_path / f"{TEMPORARY}removed-f").mkdir()
    remove(tmp_path / "f")
    remove(tmp_path / "f")
    assert names(tmp_path) == []


def test_json_is_written_to_a_path_and_not_for_none(tmp_path):
    write_json(tmp_path / "a.json", {"a": [1, 2]})
    write_json(None, {"a": object()})
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]} and names(tmp_path) == ["a.json"]
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", object())
    assert json.loads((tmp_path / "a.json").read_text()) == {"a": [1, 2]} and names(tmp_path) == ["a.json"]


def test_a_missing_folder_is_named(tmp_path):
    path = tmp_path / "nowhere" / "a"
    for write in (destination, lambda p: write_whole(p, "")):
        with pytest.raises(FileNotFoundError, match=r"a cannot be written: .*nowhere"):
            write(path)


# ---- links, pipes, devices


@pytest.mark.parametrize("what", PLACES)
def test_links_and_streams_are_written_through_and_other_kinds_refused(what, tmp_path):
    check_place(what, lambda path: write_whole(path, "new" * 100_000), tmp_path, "a", b"new" * 100_000)


@pytest.mark.parametrize("what", PLACES)
def test_the_destination_is_checked_before_the_work(what, tmp_path):
    """Except for the reader of a pipe, which may come later."""
    path = PLACES[what].make(tmp_path, "a")
    before = nodes(tmp_path)
    if PLACES[what].refused and what not in STREAMS:
        with pytest.raises(OSError, match=PLACES[what].refused):
            destination(path)
        with pytest.raises(OSError, match=PLACES[what].refused), placed(path):
            pytest.fail("the work was done")
    else:
        destination(path)
    assert nodes(tmp_path) == before


@pytest.mark.parametrize("what", [what for what in PLACES if what not in ("no folder", "below a file")])
@pytest.mark.parametrize(("name", "one"), [("a.xml", "a.bin"), ("a.bin", "a.xml")])
def test_two_files_of_which_one_is_a_link_a_stream_or_refused(what, name, one, tmp_path):
    def write(path):
        with placed_together(path.with_name("a.xml"), path.with_name("a.bin")) as pair:
            for file in pair:
                file.write_text("new")
        path.with_name(one).unlink()

    if what not in STREAMS:
        check_place(what, write, tmp_path, name, b"new")
        return
    path = PLACES[what].make(tmp_path, name)
    before = nodes(tmp_path)
    with pytest.raises(OSError, match=rf"{name} .* pipe or a device"):
        write(path)
    assert nodes(tmp_path) == before


def test_two_names_of_one_file_are_refused(tmp_path):
    (tmp_path / "a.bin").symlink_to("a.xml")
    pair = placed_together(tmp_path / "a.xml", tmp_path / "a.bin")
    with pytest.raises(OSError, match=r"a\.xml and .*a\.bin lead to one"), pair:
        pytest.fail("the work was done")
    assert names(tmp_path) == ["a.bin"]


def test_hard_links_keep_the_old_content_with_a_warning(tmp_path):
    (tmp_path / "a").write_bytes(OLD)
    os.link(tmp_path / "a", tmp_path / "b")
    with pytest.warns(UserWarning, match=r"a is written anew; another name .*hard link"):
        write_whole(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new" and (tmp_path / "b").read_bytes() == OLD
    with pytest.raises(UserWarning, match="hard link"):  # warnings are errors here: nothing is written
        os.link(tmp_path / "b", tmp_path / "c")
        write_whole(tmp_path / "b", "new")
    assert (tmp_path / "b").read_bytes() == OLD


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o664, 0o755])
def test_permissions_and_owner_stay(mode, tmp_path):
    path = tmp_path / "a"
    path.write_bytes(OLD)
    path.chmod(mode)
    if os.getuid() == 0:
        os.chown(path, 12345, 23456)
    before = path.stat()
    write_whole(path, "new")
    after = path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)


def test_read_only_files_and_folders_are_refused():
    with tempfile.TemporaryDirectory() as folder:  # other users cannot enter pytest's folder
        place = Path(folder)
        (place / "folder").mkdir()
        (place / "file").write_bytes(OLD)
        (place / "link").symlink_to("file")
        (place / "file").chmod(0o444)
        place.chmod(0o777)
        (place / "folder").chmod(0o555)
        with as_nobody():
            for name, locked in (("file", "file"), ("link", "file"), ("folder/a", "folder")):
                with pytest.raises(PermissionError, match=rf"{name}.* {place / locked} is read-only"):
                    write_whole(place / name, "new")
        assert names(place) == ["file", "folder", "link"] and (place / "file").read_bytes() == OLD


def python(*lines: str) -> list[str]:
    """The command of a process that imports only the module under test, and so starts quickly."""
    folder = str(Path(destination.__code__.co_filename).parent)
    first = "import os, sys", f"sys.path.insert(0, {folder!r})", "from pathlib import Path", "from files import *"
    return [sys.executable, "-c", "\n".join([*first, *lines])]


def test_streams_of_the_process_are_written_to_and_not_replaced(tmp_path):
    """Through a link like /dev/stdout, a pipe gets the content, and a file that the shell has open is refused."""
    (tmp_path / "stdout").symlink_to("/proc/self/fd/1")
    command = [*python("for name in sys.argv[1:]:", "    write_whole(Path(name), 'whole ' + name)"), "stdout"]
    options = {"cwd": tmp_path, "text": True, "check": False}
    done = subprocess.run([*command, "/proc/self/fd/1"], capture_output=True, **options)
    assert done.stdout == "whole stdoutwhole /proc/self/fd/1"
    with (tmp_path / "out").open("w") as out:
        done = subprocess.run(command, stdout=out, stderr=subprocess.PIPE, **options)
    assert "stdout" in done.stderr and "open already" in done.stderr
    assert names(tmp_path) == ["out", "stdout"] and not (tmp_path / "out").read_bytes()
    assert os.readlink(tmp_path / "stdout") == "/proc/self/fd/1"


def test_a_name_may_be_as_long_as_the_file_system_allows(tmp_path):
    for name in ("a" * 255, "ö" * 127):
        write_whole(tmp_path / name, "new")
    assert names(tmp_path) == ["a" * 255, "ö" * 127]


# ---- folders


FOLDERS = {
    "a link to a folder": lambda at: (at / "other").mkdir() or (at / "f").symlink_to("other"),
    "a dangling link": lambda at: (at / "f").symlink_to("deep/other"),
}


@pytest.mark.parametrize("what", FOLDERS)
def test_links_to_folders_are_written_through(what, tmp_path):
    FOLDERS[what](tmp_path)
    link = os.readlink(tmp_path / "f")
    for content in ("one", "two"):
        with placed_folder(tmp_path / "f") as temporary:
            (temporary / content).write_text("")
        assert os.readlink(tmp_path / "f") == link and names(tmp_path / link) == [content]
    make_folder(tmp_path / "f" / "below")
    assert (tmp_path / link / "below").is_dir()


@pytest.mark.parametrize("what", ["a file", "a link to a file", "a pipe", "a device", "a socket", "a block device"])
def test_a_folder_in_place_of_something_else_is_refused(what, tmp_path):
    path = PLACES[what].make(tmp_path, "f")
    before = nodes(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"/f cannot be written"), placed_folder(path):
        pytest.fail("the work was done")
    for folder in (path, path / "below"):
        with pytest.raises(NotADirectoryError, match=rf"{folder} cannot be made"):
            make_folder(folder)
    assert nodes(tmp_path) == before


def test_only_the_link_to_a_folder_is_removed(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    remove(tmp_path / "link")
    assert names(tmp_path) == ["real"]


# ---- several writers at once


def write_a(kind, folder, text):
    if kind == "file":
        write_whole(folder / "a", text)
    elif kind == "folder":
        with placed_folder(folder / "a") as temporary:
            for name in "xy":
                (temporary / name).write_text(text)
    else:
        with placed_together(folder / "a.xml", folder / "a.bin") as pair:
            for file in pair:
                file.write_text(text)


def contents(kind, folder):
    """The content of each file of `kind`."""
    paths = {"file": ["a"], "folder": ["a/x", "a/y"], "pair": ["a.xml", "a.bin"]}[kind]
    return [(folder / path).read_text() for path in paths]


@pytest.mark.parametrize("kind", ["file", "folder", "pair"])
def test_of_many_threads_one_leaves_all_its_files(kind, tmp_path):
    texts = [str(n) * 10_000 for n in range(8)]
    for _ in range(2):
        assert at_once([lambda text=text: write_a(kind, tmp_path, text) for text in texts]) == []
        texts_left = contents(kind, tmp_path)
        assert len(set(texts_left)) == 1 and texts_left[0] in texts
        assert names(tmp_path) == (["a.bin", "a.xml"] if kind == "pair" else ["a"])


def test_of_many_processes_one_leaves_its_file(tmp_path):
    line = "for n in range(10): write_whole(Path('a'), sys.argv[1] * 10_000)"
    processes = [subprocess.Popen([*python(line), str(n)], cwd=tmp_path) for n in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert (tmp_path / "a").read_text() in [str(n) * 10_000 for n in range(3)] and names(tmp_path) == ["a"]


def test_folders_of_killed_processes_are_removed_and_those_in_use_stay(tmp_path):
    lines = "with placed(Path('a')) as temporary:", "    temporary.write_text('half')", "    os.kill(os.getpid(), 9)"
    for _ in range(2):
        assert subprocess.run(python(*lines), cwd=tmp_path, check=False).returncode == -9
    assert [name.startswith(TEMPORARY) for name in names(tmp_path)] == [True]  # the second has removed the first's
    with placed(tmp_path / "a") as slow:
        slow.write_text("slow")
        write_whole(tmp_path / "a", "quick")
        assert (tmp_path / "a").read_text() == "quick" and slow.exists()
    assert (tmp_path / "a").read_text() == "slow" and names(tmp_path) == ["a"]


def test_a_folder_that_another_process_has_locked_is_written_to(tmp_path):
    """`flock FOLDER COMMAND` locks it, a usual way to run one command at a time."""
    handle = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX)
    for kind in ("file", "folder"):
        write_a(kind, tmp_path, "new")
        assert set(contents(kind, tmp_path)) == {"new"}
        (tmp_path / "a").unlink() if kind == "file" else remove(tmp_path / "a")
    os.close(handle)
