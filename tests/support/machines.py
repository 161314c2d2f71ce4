"""Machines that C programs run on here: cross compilers of Debian, and emulators."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

STRICT = "-std=c99", "-Os", "-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror"
AVR_MAIN = """
#include <avr/interrupt.h>
#include <avr/io.h>
#include <avr/sleep.h>
#include <stdio.h>
#define main test_main
#include "net_test.c"
#undef main

static int put(char c, FILE *file)
{
    (void)file;
    loop_until_bit_is_set(UCSR0A, UDRE0);
    UDR0 = (unsigned char)c;
    return 0;
}

static FILE out = FDEV_SETUP_STREAM(put, NULL, _FDEV_SETUP_WRITE);

int main(void)
{
    UCSR0B = _BV(TXEN0);
    stdout = &out;
    test_main();
    cli();
    sleep_enable();
    sleep_cpu();
    return 0;
}
"""

STACK_MAIN = """
#include <stdio.h>
#include "net.c"
#define DEEP 8192u

int main(void)
{
    static uint8_t input[NET_INPUT_SIZE];
    static int32_t scores[NET_SCORES];
    static uint32_t arena[NET_ARENA_SIZE / 4];
    volatile uint8_t here = 0;
    volatile uint8_t *const end = (volatile uint8_t *)((uintptr_t)&here - 16u);
    int (*volatile run)(const void *, int32_t *, uint32_t *, size_t) = net_run;
    uint32_t i, state = 1;
    for (i = 0; i < sizeof input; i++) {
        state = state * 1664525u + 1013904223u;
        input[i] = (uint8_t)(state >> 24);
    }
    for (i = 1; i <= DEEP; i++) {
        *(volatile uint8_t *)((uintptr_t)end - i) = 0xA5;
    }
    if (run(input, scores, arena, sizeof arena) != NET_OK) {
        return 1;
    }
    for (i = DEEP; i != 0 && *(volatile uint8_t *)((uintptr_t)end - i) == 0xA5; i--) {
    }
    printf("%lu\\n", (unsigned long)(i + 16u));
    return here;
}
"""
"""Prints how many bytes of stack a run has written, of those below `main`, which it fills before."""


@dataclass(frozen=True)
class Machine:
    """compiler, flags: of a program; runner: emulator, before the program's name. main: a file around the test."""

    compiler: str
    flags: tuple[str, ...]
    runner: tuple[str, ...]
    main: str | None = None

    @property
    def missing(self) -> str | None:
        """The first program that is not installed."""
        return next((name for name in (self.compiler, self.runner[0]) if shutil.which(name) is None), None)

    def printed(self, folder: Path, file: str = "net_test.c") -> str:
        """What `file` in `folder` prints. CalledProcessError: it does not compile or run."""
        source = folder / file
        if self.main is not None:
            source = folder / "main.c"
            source.write_text(self.main)
        program, strict = folder / "test.elf", STRICT if self.main is None else ("-std=gnu99", "-Os")
        subprocess.run([self.compiler, *strict, *self.flags, str(source), "-o", str(program)], check=True, cwd=folder)
        done = subprocess.run([*self.runner, str(program)], check=True, cwd=folder, capture_output=True, text=True)
        return done.stdout + done.stderr


def _placed(flash: int, ram: int) -> tuple[str, ...]:
    """Options of picolibc for a machine whose memory is there."""
    ends = {"flash": flash, "flash_size": 0x400000, "ram": ram, "ram_size": 0x400000}
    linked = (f"-Wl,--defsym=__{name}={value:#x}" for name, value in ends.items())
    return "--specs=picolibc.specs", "--oslib=semihost", "--crt0=hosted", *linked, "-Tpicolibc.ld"


SEMIHOSTING = "-nographic", "-semihosting-config", "enable=on,target=native", "-monitor", "none", "-serial", "none"
ARM_BOARD = "qemu-system-arm", "-M", "mps2-an386", *SEMIHOSTING, "-kernel"
MACHINES = {
    "Cortex-M4": Machine("arm-none-eabi-gcc", ("-mcpu=cortex-m4", "-mthumb", *_placed(0, 0x20000000)), ARM_BOARD),
    "Cortex-M0": Machine("arm-none-eabi-gcc", ("-mcpu=cortex-m0", "-mthumb", *_placed(0, 0x20000000)), ARM_BOARD),
    "ARMv7-A": Machine("arm-linux-gnueabihf-gcc", ("-static",), ("qemu-arm",)),
    "RISC-V 32": Machine(
        "riscv64-unknown-elf-gcc",
        ("-march=rv32imac", "-mabi=ilp32", *_placed(0x80000000, 0x80400000)),
        ("qemu-system-riscv32", "-M", "virt", "-bios", "none", *SEMIHOSTING, "-kernel"),
    ),
    "S/390, most significant byte first": Machine("s390x-linux-gnu-gcc", ("-static",), ("qemu-s390x",)),
    "AVR": Machine("avr-gcc", ("-mmcu=atmega1284p",), ("simavr", "-m", "atmega1284p", "-f", "16000000"), AVR_MAIN),
}
