"""One operation as a .tflite graph, next to what it computes in torch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from spequant.deploy.engines import ENGINES
from spequant.deploy.formats.tflite import op_graph
from spequant.deploy.grids import Grid
from spequant.deploy.operations import Input, Operation
from spequant.deploy.tflite_nodes import schema

ENDS = ("litert", pytest.param("tflm", marks=pytest.mark.slow))
FEW, MANY = Grid(0.5, 0, 3), Grid(0.0313, -127, 127)


def source(shape: tuple[int, ...], grid: Grid | None, name: str = "x") -> tuple[Input, Tensor]:
    """(an operation that gives codes of `grid`, or float numbers, of (1, ...); some)"""
    generator = torch.Generator().manual_seed(0)
    full = (1, *shape)
    if grid is None:
        return Input(name, (), None, full), torch.randn(full, generator=generator)
    codes = torch.randint(grid.low, grid.high + 1, full, generator=generator, dtype=torch.int32)
    return Input(name, (), grid, full), codes


def check(op: Operation, *given: Tensor, engine: str, micro: bool = False) -> list[str]:
    """Whether an engine gives what torch does: all codes, or float numbers to their last bits. Its operators."""
    graph = op_graph(op, micro=micro)
    feed = {f"in{i}": graph.stored(x, s) for i, (x, s) in enumerate(zip(given, op.inputs, strict=True))}
    (got,) = ENGINES[engine](graph.data, 1)(feed)
    expected = op.compute(given)
    assert expected.shape == op.shape == got.shape
    if op.grid is None:
        np.testing.assert_allclose(got, expected.numpy(), rtol=2e-5, atol=2e-6)
    else:
        codes = torch.round(expected).clamp(op.grid.low, op.grid.high)
        np.testing.assert_array_equal(got.astype(np.int32) - graph.zero[op], codes.numpy())
    return operators(graph.data)


def operators(data: bytes) -> list[str]:
    """Names of the operators in a file, in their order."""
    s = schema()
    model = s.Model.GetRootAs(data)
    kinds = {value: name for name, value in vars(s.BuiltinOperator).items() if isinstance(value, int)}
    graph = model.Subgraphs(0)
    codes = [model.OperatorCodes(graph.Operators(i).OpcodeIndex()) for i in range(graph.OperatorsLength())]
    return [kinds[code.BuiltinCode()] for code in codes]
