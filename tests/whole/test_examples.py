"""Each script of examples/ that trains runs as a reader would run it, and trains: the figures that it prints say so."""

import importlib.util
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import spequant

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "examples"
ELSEWHERE = {"hls4ml_run.py", "onnxruntime_run.py", "squad_trainer.py"}  # need files, or an engine of their own
MOST_LINES = 100


def run(name, folder, *options):
    """What the script prints, run in `folder` by another process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(FOLDER / name), *options]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def numbers(text):
    """The numbers with a decimal point, in the order of the text."""
    return [float(x) for x in re.findall(r"-?\d+\.\d+", text)]


def test_regression(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["regression.py", "--steps", "80"])
    runpy.run_path(str(FOLDER / "regression.py"), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[-3:]] == ["float", "3 bits, calibrated", "3 bits, trained"]
    (_, floating), (_, calibrated), (_, trained) = map(numbers, (line.partition(":")[2] for line in lines[-3:]))
    assert floating > 50 and calibrated < trained


@pytest.mark.slow
def test_segmentation(tmp_path):
    floating, calibrated, trained = numbers(run("segmentation.py", tmp_path, "--steps", "160"))
    assert floating > 50 and calibrated < trained


@pytest.mark.slow
def test_detection(tmp_path):
    lines = run("detection.py", tmp_path, "--steps", "250").splitlines()
    floating, calibrated, trained = (float(re.search(r"'f1': ([\d.]+)", line)[1]) for line in lines)
    assert floating > 20 and calibrated < trained


@pytest.mark.slow
def test_image_folder(tmp_path):
    said = run("image_folder.py", tmp_path, "--epochs", "4")
    floating, low_bit = numbers(said.splitlines()[0])
    assert floating > 70 and low_bit > 70
    assert numbers(said.splitlines()[-1])[0] == pytest.approx(low_bit, abs=2.1)  # biases were rounded
    known = "--root", "image-folder/pictures", "--weights", "image-folder/float.pt"
    again = run("image_folder.py", tmp_path, "--epochs", "1", *known, "--out", "second")
    assert "onnxruntime" in again and spequant.load(tmp_path / "second" / "model.onnx").classes == ("columns", "rows")
    assert numbers(again.splitlines()[0])[0] > 70


@pytest.mark.slow
def test_text_classification(tmp_path):
    *_, figures, answer = run("text_classification.py", tmp_path, "--steps", "150").splitlines()
    floating, _, trained = numbers(figures)
    assert floating > 80 and trained > 75
    assert re.fullmatch(r"text-classification.low-bit: 'the \w+ was [\w ]+' is (good|bad) \(\d+%\)", answer), answer
    file = tmp_path / "own.tsv"
    file.write_text(
        "".join(
            f"{'warm' if i % 2 else 'cold'}\tit is {'hot' if i % 2 else 'icy'} on day {i % 7}\n" for i in range(400)
        )
    )
    *_, figures, answer = run("text_classification.py", tmp_path, "--text", str(file), "--steps", "60").splitlines()
    floating, _, trained = numbers(figures)
    assert floating > 90 and trained > 90 and "'it is icy on day 0' is cold" in answer


@pytest.mark.slow
def test_own_quantizer(tmp_path):
    floating, trained = numbers(run("own_quantizer.py", tmp_path, "--epochs", "3", "--images", "640").splitlines()[-1])
    assert floating > 60 and trained > 30
    assert "MeanMagnitude" in (tmp_path / "own-quantizer" / "low-bit" / "recipe.json").read_text()


@pytest.mark.slow
def test_lightning_module(tmp_path):
    if importlib.util.find_spec("lightning") is None:
        pytest.skip("lightning is not installed")
    draws, same, figures = run("lightning_module.py", tmp_path, "--epochs", "4").splitlines()[-3:]
    assert re.fullmatch(r"draws (\d+), steps \1", draws), draws
    assert same == "resumed as uninterrupted: True"
    floating, trained = numbers(figures)
    assert floating > 80 and trained > 70


def test_each_script_is_run_here_is_short_and_is_in_the_readme():
    readme, tests = (FOLDER / "README.md").read_text(), Path(__file__).read_text()
    for path in sorted(FOLDER.glob("*.py")):
        assert f"[{path.name}]({path.name})" in readme
        if path.name not in ELSEWHERE:
            assert f"def test_{path.stem}(" in tests
            assert len(path.read_text().splitlines()) <= MOST_LINES
