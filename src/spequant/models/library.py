"""torchvision, timm and transformers, imported when a network is first made of them."""

from importlib import import_module
from typing import Any


def library(name: str, extra: str = "vision") -> Any:
    """The module of that name. ModuleNotFoundError: the extra is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'spequant[{extra}]'") from error
