"""The command `spequant`: parses and calls. Torch is imported when a command runs, not before."""

import os
import select
import sys
from collections.abc import Sequence

from spequant.app.commands.table import COMMANDS, HELP, Command, usage
from spequant.app.commands.versions import print_version
from spequant.names import nearest

BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""variables by which other packages show no bars of their own, which would fill a log and break a line that moves"""


def main(argv: Sequence[str] | None = None) -> None:
    """Carry out a command.

    Args:
        argv: its words; None: those of this process.

    Raises:
        SystemExit: the command failed, or its words are wrong; the message says why.
    """
    for name in BARS:
        os.environ.setdefault(name, "1")
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:1] == ["help"] and not HELP & set(words):
        words = [*words[1:], "--help"]
    if words[:1] == ["--version"]:
        words[0] = "version"
    if words == ["version"]:
        print_version()
        return
    if not words or words[0] in HELP:
        print(usage())
        return
    try:
        _call(words[0], words[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        if isinstance(error, BrokenPipeError) and _unread():
            raise SystemExit(141) from None  # as if SIGPIPE had ended it
        raise SystemExit(f"spequant {words[0]}: {error}") from None
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        missing = f"the command line needs {package}: pip install 'spequant[all]'"
        raise SystemExit(f"spequant {words[0]}: {missing if package in ('tyro', 'rich') else error}") from None
    except (KeyboardInterrupt, Exception) as stopped:
        if not _interrupted(stopped):
            raise
        print(f"spequant {words[0]}: {str(stopped) or 'interrupted'}", file=sys.stderr)
        raise SystemExit(130) from None


def _call(name: str, words: Sequence[str]) -> None:
    """Carry out the command `name`, or print its help."""
    parts = [command.removeprefix(f"{name} ") for command in COMMANDS if command.startswith(f"{name} ")]
    if parts and words[:1] and words[0] in parts:
        name, words = f"{name} {words[0]}", words[1:]
    elif parts and words[:1] and words[0] in HELP:
        print(usage(name))
        return
    elif parts:
        raise ValueError(f"{name} measures {words[0] if words else ''!r}; expected {' or '.join(parts)}")
    if name not in COMMANDS:
        raise SystemExit(f"spequant: command {name!r}: {nearest(name, list(COMMANDS))}")
    _carry_out(COMMANDS[name], words)


def _carry_out(command: Command, words: Sequence[str]) -> None:
    if HELP & set(words):
        from spequant.app.commands.guide import explain

        if explain(command, words):
            return
    if command.of is not None:
        command.function(words)
        return
    import tyro

    settings = tyro.cli(command.settings, args=words, prog=command.prog)
    command.function(settings)  # which imports torch: not before the words are known to be right


def _unread() -> bool:
    """Return whether nobody reads what this process prints, as after `| head`. Then nothing more is printed."""
    output = select.poll()
    output.register(sys.stdout, 0)
    if not output.poll(0):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _interrupted(error: BaseException) -> bool:
    """Return whether `error` is an interruption. Where training raised one, torch is imported already."""
    if isinstance(error, KeyboardInterrupt):
        return True
    from spequant.train import Interrupted

    return isinstance(error, Interrupted)


if __name__ == "__main__":
    main()
