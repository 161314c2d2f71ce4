"""What the processor is, as the system tells it."""

import pytest

from spequant.deploy.processor import instruction_sets, processor_name


@pytest.mark.parametrize("flags", ["flags", "Features"])
def test_instruction_sets_and_name_are_those_of_the_processor(flags, monkeypatch, tmp_path):
    told = f"model name : one with avx2\n{flags}\t\t: fpu sse2 avx512_vnni avx2 amx_int8x\n"
    (tmp_path / "cpuinfo").write_text(told)
    monkeypatch.setattr("spequant.deploy.processor.CPUINFO", str(tmp_path / "cpuinfo"))
    assert instruction_sets() == ["avx2", "avx512_vnni"] and processor_name() == "one with avx2"


def test_where_the_system_tells_nothing_there_is_a_name(monkeypatch):
    monkeypatch.setattr("spequant.deploy.processor.CPUINFO", "/nowhere")
    assert instruction_sets() == [] and processor_name()
