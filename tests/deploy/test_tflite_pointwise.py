"""Functions, sums and products in .tflite graphs: the twin's codes, or torch's values, in both engines."""

from typing import Any

import pytest
import torch

from spequant.deploy.formats.tflite import op_graph
from spequant.deploy.grids import Grid
from spequant.deploy.operations import Add, Affine, Clamp, Curve, Divide, Function, Mul, PRelu, Sigmoid, Subtract
from spequant.deploy.operations.pointwise import CURVES
from support.tflite_alone import ENDS, FEW, MANY, check, source

IMAGE = (6, 4, 5)
NUMBERS = {"celu": (0.7,), "elu": (1.3,), "leaky_relu": (0.1,), "softplus": (2.0, 20.0), "pow": (2.0,)}


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENDS)
def test_curves_in_float(engine):
    x, given = source(IMAGE, None)
    positive = x, given.abs() + 0.1
    for name in sorted(set(CURVES) - {"gelu"}):
        a, values = positive if name == "sqrt" else (x, 4 * given)
        check(Curve("op", (a,), None, x.shape, name, NUMBERS.get(name, ())), values, engine=engine)
    check(PRelu("op", (x,), None, x.shape, torch.linspace(-1, 1, 6)), given, engine=engine)
    check(Clamp("op", (x,), None, x.shape, -0.5, 6.0), given, engine=engine)
    check(Sigmoid("op", (x,), None, x.shape), given, engine=engine)
    check(Affine("op", (x,), None, x.shape, torch.linspace(-1, 1, 6), torch.ones(1)), given, engine=engine)
    for kind in (Add, Subtract, Mul, Divide):
        b, other = source((6, 1, 1), None, "y")
        check(kind("op", (x, b), None, x.shape), given, other, engine=engine)


def test_what_microcontrollers_have_no_operator_for_is_named():
    x, _ = source(IMAGE, None)
    for name, numbers in (("gelu", ()), ("pow", (3.0,))):
        with pytest.raises(ValueError, match=rf"^act: .*tflite has no {name}.*between=8"):
            op_graph(Curve("act", (x,), None, x.shape, name, numbers))


def function(grid, result, kind: Any = Curve, **fields: Any):
    x, codes = source(IMAGE, grid)
    part = kind("part", (x,), None, x.shape, **fields)
    return Function("op", (x,), result, x.shape, (part,)), codes


@pytest.mark.parametrize("engine", ENDS)
@pytest.mark.parametrize("name", ["hardswish", "gelu", "silu", "tanh"])
def test_functions_of_codes(name, engine):
    """A table for microcontrollers, and where there is no other way; else float operators, with the table's codes."""
    for grid, result in ((MANY, Grid(0.0171, -20, 127)), (FEW, Grid(0.7, 0, 3))):
        op, codes = function(grid, result, function=name)
        assert check(op, codes, engine=engine, micro=True) == ["CAST", "ADD", "GATHER"]
        assert ("GATHER" in check(op, codes, engine=engine)) == (name == "gelu")


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENDS)
def test_a_table_for_each_channel(engine):
    op, codes = function(MANY, MANY, PRelu, slopes=torch.linspace(-1, 1, 6))
    assert "GATHER" in check(op, codes, engine=engine, micro=True)
    check(op, codes, engine=engine)


@pytest.mark.parametrize("engine", ENDS)
@pytest.mark.parametrize(
    ("grid", "operators"),
    [
        (Grid(0.291, 0, 3), ["MUL"]),
        (Grid(4.03, -128, 127), ["MUL"]),
        (Grid(4.03, -127, 127), ["MUL"]),  # no product passes the ends
        (Grid(0.31, -7, 9), ["MUL", "MUL"]),
        (Grid(0.31, -7, -2), ["MUL", "MAXIMUM", "MINIMUM"]),
    ],
)
def test_products_of_codes(grid, operators, engine):
    """Of an image and a number for each channel."""
    (a, first), (b, second) = source(IMAGE, MANY), source((6, 1, 1), Grid(1 / 256, 0, 255), "y")
    assert check(Mul("op", (a, b), grid, a.shape), first, second, engine=engine) == operators
