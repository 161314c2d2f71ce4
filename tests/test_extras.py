"""Packages of the optional extras: where one is missing, the error names the extra."""

import sys
from contextlib import contextmanager

import pytest
import torch

from spequant import deploy as export
from spequant.app.bench.infer import float_onnx
from spequant.deploy import engines
from spequant.extras import needs
from support.integer_networks import lowered


def test_an_installed_package_is_imported():
    assert needs("json", "deploy") is sys.modules["json"]


@contextmanager
def hidden(package):
    """Inside this context, `package` cannot be imported, as if it were not installed."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [n for n in sys.modules if n.startswith(f"{package}.")]:
            patch.delitem(sys.modules, name)
        patch.setitem(sys.modules, package, None)
        yield


@pytest.mark.parametrize(
    ("package", "call"),
    [
        ("onnx", lambda program: export.integer_graph(program)),
        ("onnx", lambda program: export.quant_graph(program)),
        ("onnxruntime", lambda program: engines.onnxruntime(b"")),
        ("openvino", lambda program: engines.openvino(b"")),
        ("qonnx", lambda program: engines.qonnx(b"")),
        ("onnxscript", lambda program: float_onnx(torch.nn.Linear(2, 2), torch.zeros(1, 2))),
    ],
)
def test_without_the_extra_the_error_names_it(package, call):
    program = lowered("two bits").program
    with (
        hidden(package),
        pytest.raises(ModuleNotFoundError, match=rf"^{package}[.\w]* is not installed: .*'spequant\[deploy\]'"),
    ):
        call(program)
