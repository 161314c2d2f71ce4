"""The command line: what each command takes, prints and refuses. What they do: tests/recipes, studies, bench."""

import json
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from spequant.app.cli import main
from spequant.app.runs import evaluate_source
from spequant.train import Interrupted

README = Path(__file__).resolve().parents[2] / "README.md"


def test_other_packages_show_no_bars(monkeypatch, capsys):
    """That would fill a log."""
    names = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
    for name in names:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    main(["recipes", "--help"])
    assert [os.environ.get(name) for name in names] == ["1"] * 3


def test_the_version_needs_no_extra(monkeypatch, capsys):
    for name in ("tyro", "rich"):
        monkeypatch.setitem(sys.modules, name, None)
    main(["--version"])
    assert capsys.readouterr().out.startswith("spequant ")
    with pytest.raises(SystemExit, match="needs tyro: pip install"):
        main(["runs"])


def test_a_run_is_evaluated_compared_and_listed(digits_run, capsys):
    result = json.loads((digits_run / "result.json").read_text())
    main(["evaluate", str(digits_run)])
    assert f"accuracy {result['test_accuracy']:.2f} %" in capsys.readouterr().out
    assert evaluate_source(digits_run)[0]["accuracy"] == result["test_accuracy"] > 60
    main(["compare", str(digits_run.parent / "digits-float"), str(digits_run)])
    assert "digits-w2a2-speq" in capsys.readouterr().out
    main(["runs", str(digits_run.parent)])
    assert re.search(r"digits-w2a2-speq\s.*finished\s.* 2/2\s.*\d\d\.\d\d", capsys.readouterr().out)


def test_the_package_is_the_command(monkeypatch, capsys):
    """`python -m spequant`."""
    monkeypatch.setattr(sys, "argv", ["spequant", "runs", "--help"])
    runpy.run_module("spequant", run_name="__main__")
    assert "usage: spequant runs" in capsys.readouterr().out


def test_a_pipe_that_nobody_reads_ends_a_command_without_a_word():
    """As `spequant ... | head` does."""
    command = [sys.executable, "-m", "spequant", "completion", "bash"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.parametrize("error", [KeyboardInterrupt(), Interrupted(7)])
def test_an_interruption_is_no_error(error, monkeypatch, capsys):
    monkeypatch.setattr("spequant.app.studies.demo.run_demo", lambda settings: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit) as stopped:
        main(["demo"])
    assert stopped.value.code == 130 and "spequant demo: interrupted" in capsys.readouterr().err


def test_a_missing_package_of_the_command_line_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, "spequant.app.studies.demo", raising=False)
    monkeypatch.setitem(sys.modules, "rich.table", None)
    with pytest.raises(SystemExit, match=r"spequant demo: .* rich.*'spequant\[all\]'"):
        main(["demo"])


def test_misspelt_words_get_a_hint(capsys):
    for words in ([], ["--out", "a", "digits-float"]):
        with pytest.raises(SystemExit, match=r"no recipe .*train digits-float"):
            main(["train", *words])
    with pytest.raises(SystemExit, match="did you mean digits-w2a2-speq"):
        main(["train", "digits-w2a2-spek"])
    for words in (["trian"], ["help", "trian"]):
        with pytest.raises(SystemExit, match="did you mean train"):
            main(words)
    with pytest.raises(SystemExit):
        main(["train", "digits-float", "--train.epoch", "3"])
    assert "--train.epochs" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "digits-float", "--train.measure-every", "0"])
    assert "measure_every is 0" in capsys.readouterr().err
    for command in ("runs", "recipes"):
        with pytest.raises(SystemExit):
            main([command, "one", "two"])
        assert ": two" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["train", "cifar10-resnet20-w2a2-speq"], r"data\.root is not set"),
        (["train", "digits-float", "--data.held-out", "9999"], "held_out is 9999"),
        (["evaluate", "."], r"recipe\.json does not exist"),
        (["runs", "nowhere"], "nowhere does not exist"),
        (["recipes", "digits-flaot"], "recipe is 'digits-flaot'; did you mean digits-float"),
        (["study"], "no study .*table1, fig2"),
        (["study", "--smoke"], "no study .*table1, fig2"),
        (["bench", "trian"], "bench .*'trian'; expected train or infer"),
    ],
)
def test_wrong_values_get_an_error(words, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPEQUANT_DATA", raising=False)
    with pytest.raises(SystemExit, match=f"^spequant {words[0]}: .*{named}"):
        main(words)
    assert not (tmp_path / "runs").exists()


def test_readme_python_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = re.search(r"```python\n(.*?)```", README.read_text(), re.S)
    assert code
    names: dict = {}
    exec(code.group(1), names)
    losses = names["losses"]
    assert losses.total.isfinite() and losses.distill > 0 and losses.task > 0


@pytest.mark.parametrize(
    ("file", "before", "after", "named"),
    [
        ("model.safetensors", None, b"short", r"damaged/model\.safetensors is "),
        ("recipe.json", None, b"[]", r"recipe\.json: recipe is \[\]; expected an object"),
        ("recipe.json", None, b"{", r"recipe\.json: recipe is no JSON"),
        ("recipe.json", b'"resnet8"', b'"resnet9"', r"network\.name is 'resnet9'; expected resnet8"),
        (
            "recipe.json",
            b'"act": {\n      "name": "pact",\n      "decay": 0.0002',
            b'"act": {\n      "name": "lsq"',
            "another kind",
        ),
    ],
)
def test_a_damaged_run_is_refused(digits_run, tmp_path, file, before, after, named, capsys):
    damaged = tmp_path / "damaged"
    shutil.copytree(digits_run, damaged)
    content = (damaged / file).read_bytes()
    (damaged / file).write_bytes(after if before is None else content.replace(before, after))
    with pytest.raises(SystemExit, match=named):
        main(["evaluate", str(damaged)])
    main(["runs", str(tmp_path)])  # one bad folder does not hide the others
    assert "damaged" in capsys.readouterr().out
