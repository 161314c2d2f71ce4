"""What the processor here is."""

import os
import platform
from collections.abc import Iterator

CPUINFO = "/proc/cpuinfo"
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_bf16", "amx_int8", "asimd", "asimddp")


def processor_name() -> str:
    """As the system calls it, e.g. "INTEL(R) XEON(R) PLATINUM 8581C CPU @ 2.10GHz"; "cpu" where it tells none."""
    named = (value for name, value in _told() if name == "model name" and value)
    return next(named, "") or platform.processor() or "cpu"


def instruction_sets() -> list[str]:
    """Those of this processor that quantized arithmetic is faster or slower by; empty where the system tells none."""
    flags = {word for name, value in _told() if name in ("flags", "Features") for word in value.split()}
    return [name for name in INSTRUCTIONS if name in flags]


def _told() -> Iterator[tuple[str, str]]:
    """(name, value) of Linux' lines on each core; elsewhere none."""
    if not os.path.exists(CPUINFO):
        return
    with open(CPUINFO) as file:
        for line in file:
            name, _, value = line.partition(":")
            yield name.strip(), value.strip()
