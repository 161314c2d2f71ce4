"""Packages of the optional extras, imported when they are first needed."""

from importlib import import_module
from typing import Any, Literal


def needs(module: str, extra: Literal["vision", "text", "deploy", "report", "train"]) -> Any:
    """The module of that name. ModuleNotFoundError says which extra has it."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'spequant[{extra}]'") from error
