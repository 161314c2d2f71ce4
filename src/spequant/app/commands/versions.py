"""The command version, which needs no extra."""

import platform
from importlib.metadata import PackageNotFoundError, version

from spequant import __version__


def print_version(settings: object = None) -> None:
    """Print the versions of spequant, torch and Python."""
    try:
        torch = version("torch")
    except PackageNotFoundError:
        torch = "not installed"
    print(f"spequant {__version__}, torch {torch}, Python {platform.python_version()}")
