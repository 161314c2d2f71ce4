"""One place per operation: every class is registered, read in one way, and said by a file as it is."""

import importlib
import pkgutil
from dataclasses import fields

import pytest
import torch
from torch import nn

import spequant.deploy.operations as room
from spequant.deploy import Program, Twin, lower
from spequant.deploy.grids import Grid
from spequant.deploy.operations import OPERATIONS, READ, Add, Clamp, Flatten, Input, MaxPool, Mean, Operation, Quantize
from spequant.quantizers import PACT, SAWB
from support.integer_networks import Joined, prepared


def classes():
    for module in pkgutil.iter_modules(room.__path__):
        for value in vars(importlib.import_module(f"{room.__name__}.{module.name}")).values():
            if isinstance(value, type) and issubclass(value, Operation) and value is not Operation:
                yield value


def test_every_operation_is_registered():
    assert set(classes()) == set(READ) and set(OPERATIONS) <= set(READ)


@pytest.mark.parametrize("table", ["MODULES", "FUNCTIONS", "METHODS"])
def test_no_way_of_writing_an_operation_is_read_twice(table):
    keys = [key for kind in READ for key in vars(kind).get(table, {})]
    assert len(keys) == len(set(keys)) > 0


def test_every_operation_of_a_program_computes():
    assert all(kind.compute is not Operation.compute for kind in OPERATIONS)
    assert len({kind.__name__ for kind in OPERATIONS}) == len(OPERATIONS)


def test_what_a_file_says_of_an_operation_makes_it_again():
    x = torch.randn(16, 3, 8, 8)
    program = lower(prepared(Joined(), x, SAWB(3), PACT(3)), x[:1])
    base = {f.name for f in fields(Operation)}
    for op in program.ops:
        said = op.attributes()
        assert not set(said) & base and not any(isinstance(value, torch.Tensor) for value in said.values())
        if type(op) in (MaxPool, Flatten):
            again = type(op).restored({**{name: getattr(op, name) for name in base}, **said}, [])
            assert again.attributes() == said


GRID = Grid(0.5, -3, 4)


@pytest.mark.parametrize("grid", [GRID, None])
def test_one_class_computes_on_codes_and_on_their_values(grid):
    """max(values) are the values of max(codes); their sum that of their codes."""
    codes = torch.randint(-3, 5, (2, 3, 4, 4), dtype=torch.int32)
    source = Input("x", (), GRID, (1, 3, 4, 4))
    pool = MaxPool("pool", (source,), grid, (1, 3, 2, 2), (2, 2), (2, 2), (0, 0))
    expected = nn.functional.max_pool2d(codes.float(), 2)
    assert torch.equal(pool.compute([codes]), expected if grid else 0.5 * expected)
    both = Add("add", (source, source), grid, (1, 3, 4, 4))
    assert torch.equal(both.compute([codes, codes]), 2 * codes.float() * (1 if grid else 0.5))
    assert both.of_codes and not both.in_float and pool.in_float == (grid is None)


def test_float_parts_are_named_in_words():
    source = Input("x", (), None, (1, 3, 4, 4))
    clamp = Clamp("relu", (source,), None, (1, 3, 4, 4), 0.0)
    mean = Mean("pool", (clamp,), None, (1, 3), False)
    codes = Quantize("fc", (mean,), Grid(0.1, 0, 3), (1, 3))
    program = Program([source, clamp, mean, codes], codes)
    assert program.islands() == ["relu: clamp", "pool: mean"] and program.integer_ops == [codes]
    assert program.act_bits == [2]
    x = torch.full((1, 3, 4, 4), 0.12)
    assert torch.allclose(Twin(program)(x), torch.full((1, 3), 0.1))
