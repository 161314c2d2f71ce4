"""Without an extra, the tests that need it are skipped, each naming the package: what is left is the core part.

`conftest.py` names this file in `pytest_plugins`; where every package is there, it does nothing.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import pytest

PACKAGES = (
    *("accelerate", "ai_edge_litert", "brevitas", "build", "datasets", "hatch_fancy_pypi_readme", "hatchling"),
    *("importlinter", "matplotlib", "onnx", "onnxruntime", "onnxscript", "openvino", "optuna", "PIL", "qonnx", "rich"),
    *("scipy", "sklearn", "tensorboard", "tflite_micro", "timm", "tokenizers", "torchmetrics", "torchvision"),
    *("transformers", "tyro"),
)
ABSENT = {name for name in PACKAGES if find_spec(name) is None}
SAID = re.compile(r"(?:No module named '|line needs )(\w+)|(\w+)[\w.]* is not installed: pip")
"""Python's words, and those of `spequant.app.cli` and `spequant.extras`"""


def lacks(said: str) -> str | None:
    """An absent package that a message names as missing."""
    return min(ABSENT & {a or b for a, b in SAID.findall(said)}, default=None)


@contextmanager
def skipping() -> Iterator[None]:
    """Inside, an error that names an absent package skips the test."""
    try:
        yield
    except (ModuleNotFoundError, AssertionError, SystemExit) as error:  # assertions: what a process said
        if name := lacks(str(error)):
            pytest.skip(f"needs {name}")
        raise


@pytest.hookimpl(wrapper=True)
def pytest_runtest_setup(item):
    with skipping():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    with skipping():
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    report = yield
    if not report.failed or (name := lacks(str(report.longrepr))) is None:
        return report
    return pytest.CollectReport(collector.nodeid, "skipped", (str(collector.path), 0, f"Skipped: needs {name}"), [])
