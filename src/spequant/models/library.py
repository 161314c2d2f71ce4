"""torchvision and timm, imported when a network is first made of them."""

from importlib import import_module
from types import ModuleType


def library(name: str) -> ModuleType:
    """The module of that name. ModuleNotFoundError: the extra `vision` is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'spequant[vision]'") from error
