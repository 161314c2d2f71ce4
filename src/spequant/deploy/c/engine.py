"""C programs on this machine: compiled by the host's compiler and run as a process of their own."""

import json
import os
import re
import shutil
import subprocess
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from spequant.deploy.c.manifest import kernel, read_manifest, renamed

COMPILERS = ("cc", "gcc", "clang")
FLAGS = ("-std=c99", "-O2")
HOST = "host.c"
CRun = Callable[[Mapping[str, np.ndarray]], list[np.ndarray]]


def compiler() -> str:
    """The host's: $CC, or one of `COMPILERS`. FileNotFoundError: there is none."""
    named = os.environ.get("CC")
    for name in (named,) if named else COMPILERS:
        if name and shutil.which(name):
            return name
    what = f"CC is {named!r}, which is no program here" if named else f"none of {', '.join(COMPILERS)} is on the path"
    raise FileNotFoundError(f"no C compiler: {what}; --to c compiles and runs what it writes. Install gcc or clang")


def compiled(folder: Path, source: str, *flags: str, name: str = "program") -> Path:
    """The program of the file `source` in `folder`. RuntimeError: the compiler refuses it."""
    folder = folder.resolve()
    path = folder / name
    command = [compiler(), *FLAGS, *flags, f"-I{folder}", str(folder / source), "-o", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    if done.returncode:
        raise RuntimeError(f"{command[0]} does not compile {source}: {done.stderr[:2000]}")
    return path


def stack_size(folder: Path, name: str) -> int | None:
    """Bytes of stack that a run needs at most, compiled for this machine: those of all functions together, none
    of which calls itself. None: the compiler does not say."""
    with tempfile.TemporaryDirectory() as out:
        source = folder.resolve() / f"{name}.c"
        command = [compiler(), *FLAGS, "-fno-inline", "-fstack-usage", "-c", str(source)]
        done = subprocess.run([*command, "-o", f"{out}/{name}.o"], capture_output=True, check=False, cwd=out)
        reports = list(Path(out).glob("*.su"))
        if done.returncode or not reports:
            return None
        return sum(int(size) for size in re.findall(r"\t(\d+)\t", reports[0].read_text()))


def cc(model: bytes | Path, threads: int | None = None) -> CRun:
    """A C program, image by image in one thread: a folder of --to c, or what `bundle` makes."""
    if isinstance(model, bytes):
        return _of_bundle(model)
    head = read_manifest(model)
    name = head["name"]
    texts = {file: (model / file).read_text(encoding="utf-8") for file in (f"{name}.h", f"{name}.c")}
    return _started({**texts, HOST: renamed(kernel("host").replace("@TAPS@", NO_TAPS), name)}, head, [])


@lru_cache(maxsize=2)
def _of_bundle(model: bytes) -> CRun:
    content = json.loads(model)
    return _started(content["files"], content["head"], content["taps"])


def _started(files: Mapping[str, str], head: Mapping[str, Any], taps: Sequence[Sequence[int]]) -> CRun:
    here = Path(tempfile.mkdtemp(prefix="spequant-c-"))
    run = _Program(here / "program", head, taps)
    weakref.finalize(run, shutil.rmtree, here, ignore_errors=True)
    for file, text in files.items():
        (here / file).write_text(text, encoding="utf-8")
    compiled(here, HOST)
    return run


NO_TAPS = kernel("watch") + "static const net_tap net_taps[] = {{0}};\n"


def bundle(files: Mapping[str, str], head: Mapping[str, Any], taps: Sequence[Sequence[int]]) -> bytes:
    """A C program for `cc`. files: {name: text}, the one that is compiled `HOST`; taps: shapes of the codes that are
    shown, without the batch."""
    return json.dumps({"files": dict(files), "head": dict(head), "taps": [list(t) for t in taps]}).encode()


class _Program:
    """Called on arrays, it gives outputs and taps. Where taps are given they take the place of what is computed."""

    def __init__(self, program: Path, head: Mapping[str, Any], taps: Sequence[Sequence[int]]):
        self.program, self.head, self.taps = program, head, taps

    def __call__(self, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        rows = [_last(self._codes(feed["input"]))]
        forced = "tap0" in feed
        rows += [_last(feed[f"tap{i}"].astype(np.uint8)) for i in range(len(self.taps))] if forced else []
        data = np.concatenate(rows, 1).tobytes()
        argument = ["forced" if forced else "taps"] if self.taps else []
        done = subprocess.run([str(self.program), *argument], input=data, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"the C program ended with the status {done.returncode}: {done.stderr[:500]!r}")
        return self._parts(np.frombuffer(done.stdout, np.uint8).reshape(len(rows[0]), -1))

    def _codes(self, x: np.ndarray) -> np.ndarray:
        entry = self.head["input"]
        if entry["kind"] == "uint8":
            return x.astype(np.uint8)
        codes = np.rint(x.astype(np.float32) * np.float32(entry["rate"])).clip(entry["low"], entry["high"])
        return (codes + entry["zero"]).astype(np.int8).view(np.uint8)

    def _parts(self, rows: np.ndarray) -> list[np.ndarray]:
        taps, at = [], 0
        for shape in self.taps:
            size = int(np.prod(shape))
            taps.append(_first(rows[:, at : at + size], shape))
            at += size
        scores = np.ascontiguousarray(rows[:, at:]).view("<i4")
        outputs = []
        for o in self.head["outputs"]:
            size = int(np.prod(o["shape"]))
            part = scores[:, o["offset"] : o["offset"] + size]
            outputs.append((_first(part, o["shape"]) * np.float64(o["unit"])).astype(np.float32))
        return outputs + taps


def _last(x: np.ndarray) -> np.ndarray:
    """(images, channels, *positions) as rows, channels last."""
    return np.ascontiguousarray(np.moveaxis(x, 1, -1)).reshape(len(x), -1)


def _first(rows: np.ndarray, shape: Sequence[int]) -> np.ndarray:
    """Rows, channels last, as (images, channels, *positions)."""
    return np.ascontiguousarray(np.moveaxis(rows.reshape(len(rows), *shape[1:], shape[0]), -1, 1))
