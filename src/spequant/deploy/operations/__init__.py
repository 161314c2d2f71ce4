"""The operations of exported graphs, one class each; `OPERATIONS` is the registry. Who adds one adds its class here."""

from spequant.deploy.operations.affine import Affine, Negative
from spequant.deploy.operations.arithmetic import Add, Divide, Mul, Subtract
from spequant.deploy.operations.displaced import Displaced, settled
from spequant.deploy.operations.function import Function
from spequant.deploy.operations.gathering import Gathered
from spequant.deploy.operations.largest import Largest
from spequant.deploy.operations.layer import FloatLayer, Weighted
from spequant.deploy.operations.moving import Concat, Repeat, Same, Stack
from spequant.deploy.operations.operation import Operation, Step
from spequant.deploy.operations.pointwise import Clamp, Curve, PRelu, Sigmoid
from spequant.deploy.operations.positions import Adaptive, Amax, AvgPool, MaxPool, Mean
from spequant.deploy.operations.quantize import Input, Quantize, Unread
from spequant.deploy.operations.resizing import Lines, Resize
from spequant.deploy.operations.shaping import (
    ChannelShuffle,
    Flatten,
    PixelShuffle,
    PixelUnshuffle,
    Reshape,
    Transpose,
)
from spequant.deploy.operations.slicing import Pad, Parts, Slice
from spequant.deploy.operations.torch_layer import Layer
from spequant.deploy.operations.transposed import Transposed

OPERATIONS: tuple[type[Operation], ...] = (
    Input,
    Quantize,
    Weighted,
    FloatLayer,
    Affine,
    Add,
    Subtract,
    Mul,
    Divide,
    Clamp,
    Sigmoid,
    Curve,
    PRelu,
    Function,
    Mean,
    Amax,
    MaxPool,
    AvgPool,
    Flatten,
    Reshape,
    Transpose,
    PixelShuffle,
    Slice,
    Pad,
    Repeat,
    Concat,
)
"""Those of programs, all of which a format writes or refuses."""
READ: tuple[type[Operation], ...] = (
    *OPERATIONS,
    Adaptive,
    ChannelShuffle,
    Displaced,
    Gathered,
    Largest,
    Layer,
    Lines,
    Negative,
    Parts,
    PixelUnshuffle,
    Resize,
    Same,
    Stack,
    Transposed,
    Unread,
)
"""Those of networks."""
SEVERAL: tuple[type[Operation], ...] = (Parts, Largest)
"""Those that give several tensors."""

__all__ = [
    "OPERATIONS",
    "READ",
    "SEVERAL",
    "Adaptive",
    "Add",
    "Affine",
    "Amax",
    "AvgPool",
    "ChannelShuffle",
    "Clamp",
    "Concat",
    "Curve",
    "Displaced",
    "Divide",
    "Flatten",
    "FloatLayer",
    "Function",
    "Gathered",
    "Input",
    "Largest",
    "Layer",
    "Lines",
    "MaxPool",
    "Mean",
    "Mul",
    "Negative",
    "Operation",
    "PRelu",
    "Pad",
    "Parts",
    "PixelShuffle",
    "PixelUnshuffle",
    "Quantize",
    "Repeat",
    "Reshape",
    "Resize",
    "Same",
    "Sigmoid",
    "Slice",
    "Stack",
    "Step",
    "Subtract",
    "Transpose",
    "Transposed",
    "Unread",
    "Weighted",
    "settled",
]
