"""What the processor here is, as torch finds it."""

import platform

import torch

INSTRUCTIONS = (
    "avx2",
    "avx512_f",
    "avx512_vnni",
    "avx_vnni",
    "avx512_bf16",
    "amx_bf16",
    "amx_int8",
    "neon",
    "dot",
)
SUMS_IN_32_BITS = {"avx512_vnni", "avx_vnni", "dot"}


def processor_name() -> str:
    """E.g. "INTEL(R) XEON(R) PLATINUM 8581C CPU @ 2.10GHz"; "cpu" where it is not known."""
    return torch.cpu.get_capabilities().get("cpu_name") or platform.processor() or "cpu"


def instruction_sets() -> list[str]:
    """Those of this processor that quantized arithmetic is faster or slower by, in torch's words; empty where they are
    not known."""
    capabilities = torch.cpu.get_capabilities()
    return [name for name in INSTRUCTIONS if capabilities.get(name)]


def clips() -> bool:
    """Whether this processor is known to have neither VNNI nor dot products: sums of two 8-bit products that pass 16
    bits are then clipped, silently."""
    sets = set(instruction_sets())
    return bool(sets) and not sets & SUMS_IN_32_BITS
