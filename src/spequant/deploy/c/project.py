"""The files of a C program: header, source, test, build file, and what is said of them in manifest.json."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spequant.deploy.arena import Plan
from spequant.deploy.c.emitter import CEmitter, entries
from spequant.deploy.c.manifest import MANIFEST, VERSION, kernel, renamed
from spequant.deploy.c.pools import input_zero
from spequant.deploy.c.tensors import Tensor
from spequant.deploy.c.text import Constants, source
from spequant.deploy.classes import names_in
from spequant.deploy.cost import program_costs
from spequant.deploy.loaded import Preprocessing
from spequant.deploy.operations import Operation
from spequant.deploy.seal import OPEN, sealed
from spequant.deploy.twin import Twin

VECTORS = 2
TAPS = "static const net_tap net_taps[] = "


@dataclass(frozen=True)
class Project:
    """A C program, its names beginning with net_. head: what the manifest says of it, but for sizes of the compiled.
    host: the program that runs images from stdin. taps: operations whose codes that can show; zero: what is stored for
    code 0. flash: bytes of constants. plan: of the arena."""

    header: str
    source: str
    test: str
    host: str
    head: dict[str, Any]
    taps: tuple[Operation, ...]
    zero: Mapping[Operation, int]
    flash: int
    plan: Plan

    def files(self, name: str) -> dict[str, str]:
        """{file: text} of a program called `name`, without the manifest."""
        texts = {
            f"{name}.h": self.header,
            f"{name}.c": self.source,
            f"{name}_test.c": self.test,
            "CMakeLists.txt": CMAKE,
        }
        return {file: renamed(text, name) for file, text in texts.items()}


CMAKE = """cmake_minimum_required(VERSION 3.13)
project(net_program C)
set(CMAKE_C_STANDARD 99)
add_library(net_network net.c)
target_include_directories(net_network PUBLIC .)
enable_testing()
add_executable(net_test net_test.c)
add_test(NAME net_test COMMAND net_test)
"""


def project(e: CEmitter, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None) -> Project:
    """The texts of what `e` holds."""
    plan = e.placed()
    arena = plan.size
    shown = e.taps()
    ops = tuple(sorted(shown, key=lambda op: shown[op][0]))
    text, flash = source(e, arena)
    classes = names_in(about or {})
    head = _head(e, preprocessing, about, arena, flash)
    shared = kernel("watch") + TAPS + _taps([shown[op] for op in ops]) + ";\n"
    host = kernel("host").replace("@TAPS@", shared)
    body = f'#include "net.h"\n\n#include <string.h>\n\n{kernel("head")}{text}{_labels(classes)}'
    zero = {op: -t.low for op, t in e.tensors.items()}
    return Project(_header(e, head, classes), body, _test(e, ops, shared, head), host, head, ops, zero, flash, plan)


def _taps(shown: list[tuple[int, Tensor]]) -> str:
    constants = Constants()
    rows = [
        constants.record({"call": call, "at": t, "positions": t.positions, "channels": t.channels}) for call, t in shown
    ]
    return "{\n    " + ",\n    ".join(rows) + "\n}"


def _head(
    e: CEmitter, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None, arena: int, flash: int
) -> dict[str, Any]:
    first = entries(e.program)[0]
    grid = first.grid
    assert grid is not None
    codes = {"scale": grid.step, "rate": grid.rate, "zero": -input_zero(first), "low": grid.low, "high": grid.high}
    return {
        "version": VERSION,
        "about": dict(about or {}),
        "preprocessing": preprocessing,
        "act_bits": e.program.act_bits,
        "arena": arena,
        "constants": flash,
        "macs": sum(call.macs for call in e.calls),
        "layers": [asdict(cost) for cost in program_costs(e.program)],
        "unequal": e.unequal,
        "input": {
            "shape": list(e.program.input.shape[1:]),
            **({"kind": "int8", **codes} if preprocessing is None else {"kind": "uint8"}),
        },
        "outputs": [
            {"name": name, "shape": list(op.shape[1:]), "offset": t.storage.offset // 4, "unit": t.unit}
            for (name, t), op in zip(e.outputs.items(), e.program.outputs.values(), strict=True)
        ],
    }


def _header(e: CEmitter, head: dict[str, Any], classes: tuple[str, ...] | None) -> str:
    entry, size = head["input"], int(np.prod(head["input"]["shape"]))
    kind = "uint8 pixels, as they come from a camera"
    if entry["kind"] == "int8":
        kind = f"int8 codes: a number is {entry['scale']:.9g} * (code - ({entry['zero']}))"
    shape = " x ".join(map(str, (*entry["shape"][1:], entry["shape"][0])))
    outputs = "\n".join(
        f" *   from {o['offset']}: {o['name']}, {' x '.join(map(str, (*o['shape'][1:], o['shape'][0])))}; "
        f"a number is {o['unit']:.9g} * score"
        for o in head["outputs"]
    )
    labels = ""
    if classes is not None:
        labels = f"\n#define NET_LABELS {len(classes)}\nextern const char *const net_labels[NET_LABELS];\n"
    return f"""/* Made by `spequant export --to c`: integers alone, no heap, no state but the arena. */
#ifndef NET_H
#define NET_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {{
#endif

#define NET_ARENA_SIZE {e_size(head["arena"])} /* bytes */
#define NET_INPUT_SIZE {size}
#define NET_SCORES {sum(int(np.prod(o["shape"])) for o in head["outputs"])}

enum {{ NET_OK = 0, NET_ERROR_NULL = -1, NET_ERROR_ARENA = -2 }};

/* input: NET_INPUT_SIZE bytes, channels last, {shape}: {kind}.
 * scores: NET_SCORES numbers, channels last:
{outputs}
 * arena: at least NET_ARENA_SIZE bytes, which nobody else uses meanwhile; arena_size: how many there are.
 * NET_OK, or NET_ERROR_NULL: a pointer is NULL, NET_ERROR_ARENA: the arena is too small; then nothing is written. */
int net_run(const void *input, int32_t *scores, uint32_t *arena, size_t arena_size);

/* Where the largest of `count` scores is, of equal ones the first. */
size_t net_best(const int32_t *scores, size_t count);
{labels}
#ifdef __cplusplus
}}
#endif

#endif
"""


def e_size(size: int) -> int:
    """Bytes of an arena, above zero, since an array of C has one entry at least."""
    return max(4, size)


def _labels(classes: tuple[str, ...] | None) -> str:
    if classes is None:
        return ""
    names = ",\n    ".join(json.dumps(name) for name in classes)
    return f"\nconst char *const net_labels[NET_LABELS] = {{\n    {names}\n}};\n"


def made_up(low: int, high: int, size: int) -> np.ndarray:
    """The inputs of the test, (VECTORS, size): whole numbers low .. high by a linear congruential generator."""
    state, values = 1, []
    for _ in range(VECTORS * size):
        state = (state * 1664525 + 1013904223) % 2**32
        values.append(low + (state >> 16) % (high - low + 1))
    return np.asarray(values).reshape(VECTORS, size)


def _test(e: CEmitter, ops: tuple[Operation, ...], shared: str, head: dict[str, Any]) -> str:
    entry = head["input"]
    channels, *positions = entry["shape"]
    low, high = (0, 255) if entry["kind"] == "uint8" else (entry["low"] + entry["zero"], entry["high"] + entry["zero"])
    inputs = made_up(low, high, channels * int(np.prod(positions)))
    inputs = np.moveaxis(inputs.reshape(VECTORS, *positions, channels), -1, 1)
    if e.pixels is None:
        x = torch.from_numpy(inputs - entry["zero"]).float() * torch.tensor(entry["scale"], dtype=torch.float32)
    else:
        x = torch.from_numpy(np.stack([e.pixels[c][inputs[:, c]] for c in range(channels)], 1))
    twin = Twin(e.program)
    values = twin.everything(x)
    sums = [_checksum(values[op][i].numpy(), e.tensors[op].low) for i in range(VECTORS) for op in ops]
    outputs = twin.outputs(x)
    scores = [last_channels(outputs[o["name"]][i].numpy()) / o["unit"] for i in range(VECTORS) for o in head["outputs"]]
    expected = np.rint(np.concatenate(scores)).astype(np.int64)
    texts = {
        "TAPS": shared,
        "NAMES": "{\n    " + ",\n    ".join(json.dumps(op.name) for op in ops) + "\n}",
        "SUMS": "{\n    " + ",\n    ".join(f"{s}u" for s in sums) + "\n}",
        "SCORES": "{\n    " + ",\n    ".join(map(str, expected)) + "\n}",
        "TOLERANCE": str(4 + int(np.abs(expected).max()) // 2**16),
        "FROM": str(low),
        "RANGE": f"{high - low + 1}u",
    }
    text = kernel("test")
    for name, value in texts.items():
        text = text.replace(f"@{name}@", value)
    return text


def last_channels(x: np.ndarray) -> np.ndarray:
    """(channels, *positions) with its channels last, as one row."""
    return np.moveaxis(x, 0, -1).reshape(-1)


def _checksum(codes: np.ndarray, low: int) -> int:
    """Fowler, Noll and Vo's, of what is stored, channels last."""
    state = 2166136261
    for code in (last_channels(codes) - low).tolist():
        state = (state ^ code) * 16777619 % 2**32
    return state


def write_project(folder: Path, name: str, content: Project, facts: Mapping[str, Any]) -> None:
    """The files of `content` in `folder`. facts: more for the manifest."""
    texts = content.files(name)
    for file, text in texts.items():
        (folder / file).write_text(text, encoding="utf-8")
    digest = sha256("".join(texts.values()).encode()).hexdigest()
    head = {**content.head, "name": name, "sha256": digest, **facts, "seal": OPEN}
    data = json.dumps(head, indent=2).encode()
    (folder / MANIFEST).write_bytes(sealed(data, *(texts[file].encode() for file in sorted(texts))))
