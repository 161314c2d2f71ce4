"""A plugin: torch's table of ONNX functions is made once in a process of tests, not once an export.

Making it takes half the time of a small network's export. Where torch keeps it elsewhere, exports are as slow as ever.
"""

import sys
from copy import copy
from functools import cache
from typing import Any

REGISTRATION = "torch.onnx._internal.exporter._registration"


def pytest_runtest_setup() -> None:
    registry = getattr(sys.modules.get(REGISTRATION), "ONNXRegistry", None)
    if registry is not None and not hasattr(registry, "made_once"):
        registry.made_once = staticmethod(cache(registry.from_torchlib))
        registry.from_torchlib = staticmethod(_copy_of_what_was_made)


def _copy_of_what_was_made(*args: Any, **kwargs: Any) -> Any:
    made = copy(sys.modules[REGISTRATION].ONNXRegistry.made_once(*args, **kwargs))
    made.functions = {operator: list(functions) for operator, functions in made.functions.items()}
    return made
