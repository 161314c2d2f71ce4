"""What the commands take, their help and completion: without torch, true, and with a text for everything."""

import json
import re
import shutil
import subprocess
import sys
from typing import Annotated, get_args, get_origin

import pytest

from spequant.app.cli import main
from spequant.app.commands.completion import options
from spequant.app.commands.explain import METAVARS, rows
from spequant.app.commands.index import index, rows_of_recipe
from spequant.app.commands.table import COMMANDS
from spequant.app.recipes import RECIPES, to_json
from spequant.app.train import parsed_train

SHELLS = ("bash", "zsh", "fish")
HELP = [
    *([*name.split(), "--help"] for name in COMMANDS),
    *(
        ["train", name, "--help"]
        for name in ("digits-w2a2-speq", "cifar10-5k-resnet20-w2a2-beyond", "squad-bert-float")
    ),
    *(["ladder", "digits-w2a2-retrain", "--help"], ["study", "table2", "-h"], ["sweep", "digits-float", "--help"]),
    *([], ["help"], ["help", "bench", "train"], ["bench", "--help"], ["version"], ["--version"], ["recipes"]),
    *(["completion", shell] for shell in SHELLS),
]
WITHOUT_TORCH = f"""
import contextlib, io, json, sys
import spequant
from spequant.app.cli import main

def said(words):
    with contextlib.redirect_stdout(io.StringIO()) as out:
        main(words)
    return out.getvalue()

names = dir(spequant)
texts = {{" ".join(words): said(words) for words in {HELP!r}}}
print(json.dumps([names, texts, sorted(sys.modules)]))
"""


@pytest.fixture(scope="module")
def process():
    """(dir(spequant), {words: what they print}, modules) of a process that has done nothing else, 80 columns wide."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("COLUMNS", "80")
        command = [sys.executable, "-W", "error", "-c", WITHOUT_TORCH]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_help_and_completion_import_no_torch(process):
    names, _, modules = process
    assert {"prepare", "SPEQ", "__version__"} <= set(names)
    assert not {"torch", "numpy", "spequant.quantizers", "spequant.app.runs"} & set(modules)


def test_help_is_no_wider_than_the_terminal(process):
    _, texts, _ = process
    for words, text in texts.items():
        if not words.startswith(("completion ", "recipes")) or words.endswith("--help"):
            wide = [line for line in text.splitlines() if len(line) > 80]
            assert [line for line in wide if not line.startswith("usage: ")] == [], words  # tyro's, of a few options


def test_usage_names_every_command(process):
    _, texts, _ = process
    assert texts[""] == texts["help"] and all(f"\n  {name} " in texts[""] for name in COMMANDS)
    assert texts["help bench train"] == texts["bench train --help"]
    assert (
        re.findall(r"\n  (\w+ \w+)  ", texts["bench --help"]) == ["bench train"]
        and "  bench infer [" in texts["bench --help"]
    )
    assert texts["version"] == texts["--version"] and re.match(
        r"spequant \d\S*, torch \d\S*, Python 3", texts["version"]
    )


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_every_command_has_help_with_a_text_for_each_field(command, process):
    text = process[1][f"{command.name} --help"]
    assert f"usage: spequant {command.name}" in text and command.settings.__doc__.split("\n")[0][:60] in text
    assert command.name == "help" or callable(command.function)
    for row in rows(command.settings):
        shown = [extra.help for extra in getattr(row.hint, "__metadata__", ()) if getattr(extra, "help", None)]
        assert row.text or shown, f"{command.name}: {row.name} has no text"


def test_a_recipe_opens_with_what_it_is_and_all_its_fields_have_texts(process):
    for name in ("digits-w2a2-speq", "squad-bert-float"):
        assert process[1][f"train {name} --help"].startswith(index()["recipes"][name]["about"][:60])
    for name, entry in index()["recipes"].items():
        assert re.match(r"(Float|W\dA\d) \S+ (of|on) ", entry["about"]), name
    for kind, settings in index()["settings"].items():
        assert all(text for _, text, _ in settings.values()), kind


def test_what_stands_in_the_index_is_what_the_recipe_says(process, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("digits-w2a2-speq", "squad-bert-float"):
        with pytest.raises(SystemExit):
            parsed_train(name, ["--help"])
        assert capsys.readouterr().out == process[1][f"train {name} --help"]


def test_recipes_of_ones_own_have_true_help(tmp_path, capsys):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import replace\nfrom spequant.app.recipes import RECIPES\n"
        'def fast():\n    """In a minute."""\n    return replace(RECIPES["digits-float"](), name="quick")\n'
    )
    (tmp_path / "mine.json").write_text(to_json(RECIPES["digits-w2a2-retrain"]()))
    for words, there in (
        (["train", f"{tmp_path}/mine.py:fast"], ("In a minute.", "(default: quick)")),
        (["train", f"{tmp_path}/mine.json"], ("--method retrain, or", "digits-w2a2-retrain)")),
        (["ladder", "digits-float", "--method", "qkd"], ("--method qkd, or", "--method.temperature FLOAT")),
    ):
        with pytest.raises(SystemExit):
            main([*words, "--help"])
        said = " ".join(capsys.readouterr().out.replace("│", " ").split())
        assert all(text in said for text in there), words


def test_a_word_means_one_thing_in_all_commands():
    """Of widths there may be one or several; everything else has one type everywhere."""
    kinds: dict[str, set[str]] = {}
    for command in COMMANDS.values():
        for row in rows(command.settings):
            kind = get_args(row.hint)[0] if get_origin(row.hint) is Annotated else row.hint
            kinds.setdefault(row.name, set()).add(METAVARS.get(kind, getattr(kind, "__name__", str(kind)).upper()))
    several = {name: found for name, found in kinds.items() if len(found) > 1 and name not in ("bits", "act_bits")}
    assert {name: found for name, found in several.items() if name not in ("engines", "run")} == {}
    assert kinds["seeds"] == {"INT ..."} and kinds["engine"] == {"STR"}  # one engine; `engines` are several


def test_completion_offers_what_help_shows(process):
    shown = process[1]["train digits-w2a2-speq --help"]
    offered = options([*rows(COMMANDS["train"].settings), *rows_of_recipe(index()["recipes"]["digits-w2a2-speq"])])
    heads = re.findall(r"(?m)^[ │]*(--[a-z][\w.-]+)(?:, (--[\w.-]+))?", shown.partition("usage: ")[2])
    assert {option for pair in heads for option in pair if option} == set(offered)


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_reads_its_script(shell, process, tmp_path):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    script = tmp_path / "script"
    script.write_text(process[1][f"completion {shell}"])
    done = subprocess.run([shell, "-n", str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("t", "train"),
        ("train digits-w2a2-s", "digits-w2a2-speq"),
        ("train digits-float --train.ep", "--train.epochs"),
        ("train digits-float --method qk", "qkd"),
        ("export run --to on", "onnx"),
        ("bench tr", "train"),
        ("study table", "table1 table2 table3 table4 table5"),
        ("completion z", "zsh"),
        ("help lad", "ladder"),
        ("evaluate r", ""),
        ("evaluate --eng", "--engines"),
        ("train runs --dr", "--dry-run"),
    ],
)
def test_bash_completes(words, offered, process):
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    ask = f'\nCOMP_WORDS=(spequant {words}); COMP_CWORD={len(words.split())}; _spequant; echo "${{COMPREPLY[*]}}"'
    done = subprocess.run(
        ["bash", "-c", process[1]["completion bash"] + ask], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == offered
