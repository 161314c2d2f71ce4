"""Settings of the commands about the command line itself: help, version, completion."""

from dataclasses import dataclass
from typing import Annotated, Literal

from tyro.conf import Positional, arg


@dataclass(frozen=True)
class Help:
    """Print what the commands are, or what one of them takes."""

    command: Annotated[tuple[str, ...], Positional, arg(metavar="[COMMAND ...]")] = ()
    """a command, and a recipe or study of it: train digits-float; none: all commands are listed"""


@dataclass(frozen=True)
class Version:
    """Print the version of spequant, of torch and of Python."""


@dataclass(frozen=True)
class Completion:
    """Print the script by which a shell completes commands, names and options.

    bash: `eval "$(spequant completion bash)"` in ~/.bashrc. zsh: the same in ~/.zshrc, after compinit. fish:
    `spequant completion fish | source` in config.fish.
    """

    shell: Positional[Literal["bash", "zsh", "fish"]]
    """the shell that reads the script"""
