"""What C programs of `--to c` take next to TensorFlow Lite Micro: flash, arena, instructions per image.

    python benchmarks/c_programs.py                                  # ResNet-8 and DS-CNN of MLPerf Tiny
    python benchmarks/c_programs.py --networks DS-CNN --bits 2

Untrained networks. Instructions: on this machine callgrind's (valgrind) of three images less those of one; on a
Cortex-M qemu's (`-icount shift=0`), read from the board's own timer. TensorFlow Lite Micro is the package tflite-micro,
whose kernels are the reference ones of x86, on two files: the one of `--to tflite`, and LiteRT's own 8-bit quantization
of the float network, int8 from end to end. What is not installed is left out, by name.
"""

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from litert_speed import INT8, INT32

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from spequant.deploy import Program, lower
from spequant.deploy.c.engine import FLAGS, NO_TAPS, compiled
from spequant.deploy.c.manifest import kernel
from spequant.deploy.c.project import write_project
from spequant.deploy.float_program import float_program
from spequant.deploy.formats.c import c_project
from spequant.deploy.formats.tflite import tflite_graph
from spequant.deploy.tflite_engines import arena_size
from spequant.extras import needs
from spequant.quantizers import PACT, SAWB
from support.edge_networks import EDGES
from support.integer_networks import prepared
from support.machines import MACHINES

NETWORKS = {name.removeprefix("MLPerf Tiny "): edge for name, edge in EDGES.items() if name.startswith("MLPerf")}
TICK = 40
"""Instructions from one tick of the board's timer, 25 MHz, to the next: one takes a nanosecond."""
TIMED = """
#include <stdio.h>
#include "net.h"
#define TIMER ((volatile uint32_t *)0xE000E010)

int main(void)
{
    static uint8_t input[NET_INPUT_SIZE];
    static int32_t scores[NET_SCORES];
    static uint32_t arena[NET_ARENA_SIZE / 4];
    uint32_t state = 1, before, after;
    size_t i;
    for (i = 0; i < sizeof input; i++) {
        state = state * 1664525u + 1013904223u;
        input[i] = (uint8_t)(state >> 24);
    }
    TIMER[1] = 0xFFFFFF;
    TIMER[2] = 0;
    TIMER[0] = 5;
    before = TIMER[2];
    if (net_run(input, scores, arena, sizeof arena) != NET_OK) {
        return 1;
    }
    after = TIMER[2];
    printf("%lu\\n", (unsigned long)((before - after) & 0xFFFFFF));
    return 0;
}
"""
MICRO = """
import ctypes
import sys
import numpy
from tflite_micro.python.tflite_micro.runtime import Interpreter
counter = ctypes.CDLL(sys.argv[3])
interpreter = Interpreter.from_file(sys.argv[1], arena_size=int(sys.argv[2]))
entry = interpreter.get_input_details(0)
interpreter.set_input(numpy.random.default_rng(0).integers(-100, 100, entry["shape"]).astype(entry["dtype"]), 0)
interpreter.invoke()
counter.start()
interpreter.invoke()
counter.stop()
"""
COUNTER = """
#include <valgrind/callgrind.h>
void start(void) { CALLGRIND_START_INSTRUMENTATION; }
void stop(void) { CALLGRIND_STOP_INSTRUMENTATION; }
"""
"""Switches callgrind on and off in a process of Python."""


def program_of(name: str, bits: int) -> tuple[Program, Tensor]:
    """Return the untrained network `name` at `bits` as a program, and the inputs it was calibrated on."""
    torch.manual_seed(0)
    x = torch.randn(8, *NETWORKS[name].shape)
    model = prepared(NETWORKS[name].make(), x, SAWB(bits), PACT(bits), between=8)
    return lower(model, x[:1]), x


def callgrind(command: Sequence[Any], data: bytes = b"", *more: str) -> int:
    """Return the instructions that `command` takes. more: options of callgrind."""
    tool = ["valgrind", "--tool=callgrind", "--callgrind-out-file=/dev/null", *more]
    done = subprocess.run([*tool, *map(str, command)], input=data, capture_output=True, check=True)
    return int(done.stderr.decode(errors="replace").rsplit("Collected :", 1)[1].split()[0])


def host_instructions(folder: Path, size: int) -> int:
    """Return the instructions of an image on this machine. size: bytes of an image."""
    (folder / "host.c").write_text(kernel("host").replace("@TAPS@", NO_TAPS))
    program = compiled(folder, "host.c")
    images = np.random.default_rng(0).integers(0, 256, 3 * size, np.uint8).tobytes()
    return (callgrind([program], images) - callgrind([program], images[:size])) // 2


def board(folder: Path, machine: str, *more: str) -> tuple[int, int]:
    """Return (bytes of code and constants, instructions of an image) on a Cortex-M. more: options of the compiler."""
    (folder / "timed.c").write_text(TIMED)
    m = MACHINES[machine]
    if m.missing is not None:
        raise FileNotFoundError(m.missing)
    options = [m.compiler, *(flag for flag in m.flags if flag.startswith("-m")), *FLAGS, *more]
    subprocess.run([*options, "-c", "net.c", "-o", "net.o"], check=True, cwd=folder)
    sizes = subprocess.run(["arm-none-eabi-size", "net.o"], check=True, cwd=folder, capture_output=True, text=True)
    files = ["timed.c", "net.c", "-o", "timed.elf"]
    subprocess.run([m.compiler, *m.flags, *FLAGS, *more, *files], check=True, cwd=folder)
    emulator, *rest = m.runner
    command = [emulator, "-icount", "shift=0", *rest, "timed.elf"]
    done = subprocess.run(command, check=True, cwd=folder, capture_output=True, text=True)
    return int(sizes.stdout.split("\n")[1].split()[0]), TICK * int((done.stdout + done.stderr).split()[0])


@contextmanager
def left_out(what: str) -> Iterator[None]:
    """Inside, a program or package that is not installed ends the block with a line that says so."""
    try:
        yield
    except (FileNotFoundError, ImportError) as error:
        print(f"{what} is left out: {error}")


def c_row(program: Program) -> dict[str, int]:
    made = c_project(program)
    row = {"constants": made.flash, "arena": made.head["arena"]}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder, "net", made, {})
        for machine in ("Cortex-M4", "Cortex-M0"):
            with left_out(machine):
                row[f"flash, {machine}"], row[machine] = board(folder, machine)
        with left_out("x86"):
            row["host"] = host_instructions(folder, int(np.prod(made.head["input"]["shape"])))
    return row


def own_8_bits(program: Program, x: Tensor) -> bytes:
    """Return the float network of `program` as LiteRT quantizes it, int8 at both ends."""
    package: Any = needs("ai_edge_litert._pywrap_tensorflow_lite_calibration_wrapper", "tflite")
    data = tflite_graph(float_program(program)).data  # the wrapper reads these very bytes
    wrapper = package.CalibrationWrapper(data, [], [])
    wrapper.Prepare()
    for image in np.ascontiguousarray(np.moveaxis(x.numpy(), 1, -1)):
        wrapper.FeedTensor([image[None]])
    return _without_unused(wrapper.QuantizeModel(INT8, INT8, True, INT8, INT32, False, False))


def _without_unused(data: bytes) -> bytes:
    """Return a .tflite file whose tensors that nothing reads or writes, which the quantization leaves behind, have one
    number: the interpreter would keep room for all of them."""
    schema: Any = needs("tflite_micro.tensorflow.lite.micro.python.schema_py_generated", "tflite")
    model = schema.ModelT.InitFromObj(schema.Model.GetRootAs(data))
    for graph in model.subgraphs:
        used = {*graph.inputs, *graph.outputs, *(i for op in graph.operators for i in (*op.inputs, *op.outputs))}
        for i, tensor in enumerate(graph.tensors):
            if i not in used:
                tensor.shape = tensor.shapeSignature = [1]
    builder = needs("flatbuffers", "tflite").Builder(len(data))
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def micro_row(data: bytes) -> dict[str, int]:
    """Return what a .tflite file takes in TensorFlow Lite Micro."""
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "net.tflite"
        path.write_bytes(data)
        row = {"file": len(data), "arena": arena_size(path)}
        with left_out("x86"):
            (path.parent / "counter.c").write_text(COUNTER)
            counter = compiled(path.parent, "counter.c", "-shared", "-fPIC", name="counter.so")
            command = [sys.executable, "-c", MICRO, path, 2 * row["arena"] + 2**20, counter]
            row["host"] = callgrind(command, b"", "--instr-atstart=no")
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=["ResNet-8", "DS-CNN"])
    parser.add_argument("--bits", nargs="+", type=int, choices=range(1, 9), default=[2, 4, 8], metavar="BITS")
    parser.add_argument("--no-micro", action="store_true", help="C alone")
    settings = parser.parse_args()
    for name in settings.networks:
        rows = {}
        for bits in settings.bits:
            program, x = program_of(name, bits)
            show(f"{name} W{bits}A{bits}, C", c_row(program))
            rows |= {
                f"W{bits}A{bits}, .tflite": tflite_graph(program).data,
                "LiteRT's own 8 bits": own_8_bits(program, x),
            }
        for label, data in {} if settings.no_micro else rows.items():
            show(f"{name} {label}", micro_row(data))


def show(label: str, row: dict[str, int]) -> None:
    print(f"{label}: {', '.join(f'{name} {value:,}' for name, value in row.items())}", flush=True)


if __name__ == "__main__":
    main()
