"""The standard output: whether its lines move, and tables on it."""

import os
import sys

from rich.console import Console
from rich.table import Table


def moves() -> bool:
    """Return whether lines of the standard output can move: not those in a file, a pipe or a cell of a notebook."""
    notebook = "JPY_PARENT_PID" in os.environ  # where `!spequant ...` has a terminal that shows each line it is sent
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb" and not notebook


def print_table(table: Table) -> None:
    """Print a table; in a log as wide as it needs: nothing is cut off there."""
    Console(width=None if moves() else 240).print(table)
