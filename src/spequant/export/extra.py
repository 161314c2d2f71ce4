"""The packages of the extra `deploy`, imported when used."""

from importlib import import_module
from typing import Any


def needs(package: str) -> Any:
    """The module of that name; ModuleNotFoundError that says which extra has it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'spequant[deploy]'") from error
