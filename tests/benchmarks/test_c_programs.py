"""The rows of benchmarks/c_programs.py, and what it says of programs that are not installed."""

import re
import sys

import pytest

import c_programs


def printed(monkeypatch, capsys, *options):
    monkeypatch.setattr(sys, "argv", ["c_programs.py", "--networks", "autoencoder", "--bits", "2", *options])
    c_programs.main()
    return capsys.readouterr().out


@pytest.mark.slow
def test_each_row_has_what_is_installed(monkeypatch, capsys):
    text = printed(monkeypatch, capsys)
    left_out = set(re.findall(r"^(.+) is left out: ", text, re.M))
    row = re.search(r"^autoencoder W2A2, C: (.*)", text, re.M)
    assert row is not None
    parts = [part.rsplit(" ", 1) for part in row[1].split("; ")]
    numbers = {name: int(value.replace(",", "")) for name, value in parts}
    assert 0 < numbers["arena"] < numbers["constants"]
    for machine, name in (("Cortex-M4", "Cortex-M4"), ("Cortex-M0", "Cortex-M0"), ("x86", "host")):
        assert (name in numbers) != (machine in left_out)
        assert name not in numbers or numbers[name] > 250_000  # a product each takes more than one


@pytest.mark.slow
def test_programs_that_are_not_installed_are_named(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    text = printed(monkeypatch, capsys, "--no-micro")
    for what, missing in (("Cortex-M4", "arm-none-eabi-gcc"), ("x86", "no C compiler")):
        assert f"{what} is left out: {missing}" in text
    assert "autoencoder W2A2, C: constants" in text
