"""What the processor is, as torch finds it."""

import pytest
import torch

from spequant.deploy.processor import INSTRUCTIONS, clips, instruction_sets, processor_name


def found(monkeypatch, **capabilities):
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {name: True for name in ()} | capabilities)


@pytest.mark.parametrize(
    ("flags", "sets", "clipped"),
    [
        (("sse2", "avx512_vnni", "avx2"), ["avx2", "avx512_vnni"], False),
        (("avx2", "avx512_f"), ["avx2", "avx512_f"], True),
        (("neon", "dot"), ["neon", "dot"], False),
        (("neon",), ["neon"], True),
        ((), [], False),
    ],
)
def test_instruction_sets_and_what_follows(flags, sets, clipped, monkeypatch):
    found(monkeypatch, **dict.fromkeys(flags, True), amx_int8=False, cpu_name="one with them")
    assert instruction_sets() == sets and clips() is clipped and processor_name() == "one with them"


def test_where_no_name_is_known_there_is_one(monkeypatch):
    found(monkeypatch, architecture="riscv")
    assert instruction_sets() == [] and processor_name()


def test_torch_knows_these_words():
    """Of another architecture it has other keys: those of this one are among ours."""
    known = {name for name, value in torch.cpu.get_capabilities().items() if isinstance(value, bool)}
    assert known & set(INSTRUCTIONS) >= ({"avx2", "avx512_f"} if "sse2" in known else {"neon"})
