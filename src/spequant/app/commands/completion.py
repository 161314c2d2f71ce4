"""The command completion: a script by which bash, zsh or fish completes commands, names and options."""

import shlex
import typing
from collections.abc import Iterator, Sequence
from typing import Any

from tyro.conf import FlagCreatePairsOff, Positional

from spequant.app.commands.explain import SettingRow, rows
from spequant.app.commands.index import index, rows_of_recipe
from spequant.app.commands.shell import Completion
from spequant.app.commands.table import COMMANDS, Command

Names = dict[str, list[str]]
"""{first word of a command, "" for none: what may follow it}"""
Options = dict[str, list[str]]
"""{option: its values, where there are a few}"""


def print_completion(settings: Completion) -> None:
    """Print the script for a shell."""
    first = [name.partition(" ")[0] for name in COMMANDS]
    names, of_commands = {"": list(dict.fromkeys(first))}, dict[str, Options]()
    for word, command in zip(first, COMMANDS.values(), strict=True):
        names.setdefault(word, []).extend(_names(command))
        of_commands.setdefault(word, {}).update(_options_of(command))
    print(SCRIPTS[settings.shell](names, of_commands))


def _names(command: Command) -> list[str]:
    """Return what may follow the first word of a command."""
    if " " in command.name:
        return [command.name.partition(" ")[2]]
    if command.of == "study":
        return list(index()["studies"])
    if command.of or command.name == "recipes":
        return list(index()["recipes"])
    lists = {"help": [name.partition(" ")[0] for name in COMMANDS], "completion": list(SCRIPTS)}
    return list(dict.fromkeys(lists.get(command.name, [])))


def _options_of(command: Command) -> Options:
    every = {"--help": []} | options(rows(command.settings))
    if command.of in ("recipe", "recipes"):
        for entry in index()["recipes"].values():
            every |= options(rows_of_recipe(entry))
        every |= {f"--{part}": names for part, names in index()["choices"].items()}
    return every


def options(content: Sequence[SettingRow], prefix: str = "--") -> Options:
    """Return the options of settings, as tyro names them."""
    every: Options = {}
    for row in content:
        option, metadata = prefix + row.name.replace("_", "-"), getattr(row.hint, "__metadata__", ())
        if isinstance(row.value, list):
            every |= options(row.value, f"{option}.")
        elif Positional not in metadata:
            every[option] = _values(row.hint)
            if isinstance(row.value, bool) and FlagCreatePairsOff not in metadata and not every[option]:
                every[f"{prefix}no-{row.name.replace('_', '-')}"] = []
    return every


def _values(hint: Any) -> list[str]:
    """Return the values of a type that has a few: of Literal, also inside of tuples and Annotated."""
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    if typing.get_origin(hint) is typing.Union and typing.get_args(hint)[0] is bool:
        return ["True", "False", *_values(typing.get_args(hint)[1])]
    return [value for inner in typing.get_args(hint)[:1] for value in _values(inner)]


def _offers(names: Names, of_commands: dict[str, Options]) -> Iterator[tuple[str, list[str]]]:
    """Yield (pattern of "COMMAND WORD-BEFORE WORD", words to offer), for bash and zsh: the first that matches holds."""
    for command, its in of_commands.items():
        yield from ((f"'{command} {option} '*", values) for option, values in its.items() if values)
    yield from ((f"'{command} '*' -'*", list(its)) for command, its in of_commands.items())
    yield from ((f"'{command} '*", its) for command, its in names.items() if its)


def _bash(names: Names, of_commands: dict[str, Options]) -> str:
    lines = ["_spequant() {", "  local words='' command=${COMP_WORDS[1]} word=${COMP_WORDS[COMP_CWORD]}"]
    lines += ["  local before=${COMP_WORDS[COMP_CWORD-1]}", "  (( COMP_CWORD == 1 )) && command=''"]
    lines += ['  case "$command $before $word" in']
    lines += [f"    {pattern}) words='{' '.join(offer)}' ;;" for pattern, offer in _offers(names, of_commands)]
    lines += ["  esac", '  COMPREPLY=($(compgen -W "$words" -- "$word"))', "}"]
    return "\n".join([*lines, "complete -o default -F _spequant spequant"])


def _zsh(names: Names, of_commands: dict[str, Options]) -> str:
    lines = ["#compdef spequant", "_spequant() {", "  local command=$words[2] before=$words[CURRENT-1]"]
    lines += ["  (( CURRENT == 2 )) && command=''", '  case "$command $before $PREFIX" in']
    lines += [f"    {pattern}) compadd -- {' '.join(offer)} ;;" for pattern, offer in _offers(names, of_commands)]
    return "\n".join([*lines, "  esac", "  (( CURRENT > 2 )) && _files", "}", "compdef _spequant spequant"])


def _fish(names: Names, of_commands: dict[str, Options]) -> str:
    lines = [
        f"complete -c spequant -n __fish_use_subcommand -f -a {name} -d {shlex.quote(_about(name))}"
        for name in names[""]
    ]
    for command in names[""]:
        head = f"complete -c spequant -n '__fish_seen_subcommand_from {command}'"
        lines += [f"{head} -a '{' '.join(names[command])}'"] if names.get(command) else []
        for option, values in of_commands[command].items():
            lines.append(f"{head} -l {option[2:]}" + (f" -x -a '{' '.join(values)}'" if values else ""))
    return "\n".join(lines)


def _about(word: str) -> str:
    return "; ".join(c.about for c in COMMANDS.values() if c.name.partition(" ")[0] == word)


SCRIPTS = {"bash": _bash, "zsh": _zsh, "fish": _fish}
