"""The operations of exported graphs, one class each; `OPERATIONS` is the registry. Who adds one adds its class here."""

from spequant.deploy.operations.addition import Add
from spequant.deploy.operations.layer import Affine, FloatLayer, Weighted
from spequant.deploy.operations.moving import Concat, Flatten, Pad, Same, Slice
from spequant.deploy.operations.operation import Operation, Step
from spequant.deploy.operations.pointwise import Clamp, Mul, Sigmoid
from spequant.deploy.operations.positions import Amax, MaxPool, Mean
from spequant.deploy.operations.quantize import Input, Quantize

OPERATIONS: tuple[type[Operation], ...] = (
    Input,
    Quantize,
    Weighted,
    FloatLayer,
    Affine,
    Add,
    Mul,
    Clamp,
    Sigmoid,
    Mean,
    Amax,
    MaxPool,
    Flatten,
    Concat,
)
"""Those of programs, all of which a format writes or refuses."""
READ: tuple[type[Operation], ...] = (*OPERATIONS, Same, Slice, Pad)
"""Those of networks."""

__all__ = [
    "OPERATIONS",
    "READ",
    "Add",
    "Affine",
    "Amax",
    "Clamp",
    "Concat",
    "Flatten",
    "FloatLayer",
    "Input",
    "MaxPool",
    "Mean",
    "Mul",
    "Operation",
    "Pad",
    "Quantize",
    "Same",
    "Sigmoid",
    "Slice",
    "Step",
    "Weighted",
]
