"""Packages of extras, imported when they are first needed."""

from importlib import import_module
from typing import Any


def needs(module: str, extra: str) -> Any:
    """The module of that name. ModuleNotFoundError: the extra, "vision" or "text", is not installed."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'spequant[{extra}]'") from error
