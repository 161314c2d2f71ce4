"""The sketch of examples/arduino_digits: compiled for a Cortex-M4, and run here with the lines of a board."""

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from spequant.app.runs import export_source
from spequant.data import load_digits

ROOT = Path(__file__).resolve().parents[2]
SKETCH = ROOT / "examples" / "arduino_digits" / "arduino_digits.ino"
BOARD = ROOT / "tests" / "support" / "arduino"
MAIN = '#include "arduino_digits.ino"\nint main() { setup(); for (;;) loop(); }\n'


def call(*words):
    done = subprocess.run([str(w) for w in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def sketch(tmp_path):
    """The folder of the sketch, with the network of the zoo as its README puts it there."""
    pytest.importorskip("onnx")
    for tool in ("cc", "c++"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    shutil.copy(SKETCH, tmp_path)
    export_source(Path("zoo/resnet8-digits-w2a2"), "c", tmp_path / "src" / "digits", preprocessing=True, images=8)
    (tmp_path / "src" / "digits" / "digits_test.c").unlink()
    (tmp_path / "main.cpp").write_text(MAIN)
    return tmp_path


@pytest.mark.slow
def test_it_answers_as_the_network_does(sketch):
    call("cc", "-std=c99", "-O2", "-c", sketch / "src/digits/digits.c", "-o", sketch / "digits.o")
    options = ("-include", BOARD / "Arduino.h", "-I", sketch, sketch / "main.cpp", sketch / "digits.o")
    call("c++", "-std=c++11", "-Wall", "-Werror", *options, "-o", sketch / "board")
    test = load_digits()[1]
    images = test.images[:200].numpy().astype(np.uint8)
    done = subprocess.run([sketch / "board"], input=images.tobytes(), capture_output=True, check=True)
    answers = np.asarray([int(line) for line in done.stdout.split()])
    assert len(answers) == 200 and (answers == test.labels[:200].numpy()).mean() > 0.97


@pytest.mark.slow
def test_it_compiles_for_a_cortex_m4(sketch):
    compiler = shutil.which("arm-none-eabi-g++")
    if compiler is None or shutil.which("arm-none-eabi-gcc") is None:
        pytest.skip("arm-none-eabi-g++ is not installed")
    machine = ("-mcpu=cortex-m4", "-mthumb", "-Os", "-c")
    call("arm-none-eabi-gcc", "-std=c99", *machine, sketch / "src/digits/digits.c", "-o", sketch / "digits.o")
    # the board's own library is not here: names that it gives are declared, so that the sketch itself is compiled
    (sketch / "Arduino.h").write_text(
        "#include <stdint.h>\n#include <stddef.h>\nenum { OUTPUT, HIGH, LOW, LED_BUILTIN };\n"
        "void pinMode(int, int); void digitalWrite(int, int); void delay(int);\n"
        "struct Line { void begin(long); size_t readBytes(char *, size_t); void println(const char *); };\n"
        "extern Line Serial;\n"
    )
    freestanding = ("-ffreestanding", "-fno-exceptions", "-include", sketch / "Arduino.h", "-x", "c++")
    call(compiler, *machine, *freestanding, sketch / "arduino_digits.ino", "-o", sketch / "sketch.o")
    assert (sketch / "sketch.o").stat().st_size > 0 and (sketch / "digits.o").stat().st_size > 10_000
