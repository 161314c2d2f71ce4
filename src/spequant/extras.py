"""Packages of the optional extras, imported at their first use."""

from importlib import import_module
from typing import Any, Literal


def needs(module: str, extra: Literal["vision", "text", "deploy", "report", "train", "tflite"]) -> Any:
    """Import a module of an optional package.

    Args:
        module: its full name.
        extra: the extra of spequant that installs the package.

    Raises:
        ModuleNotFoundError: the package is not installed; the message names the extra.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'spequant[{extra}]'") from error
