"""Graphs whose stored codes can be read and given, which a format writes to be compared with the twin, code by code."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from spequant.deploy.loaded import Preprocessing
from spequant.deploy.operations import Operation
from spequant.deploy.program import Program


@dataclass(frozen=True)
class CodedGraph:
    """data: of the file, as engines take it. zero: what is stored for code 0, by operation; kind: of stored codes.
    taps: operations whose codes it has; None: all that were asked for."""

    data: bytes
    zero: Mapping[Operation, int]
    kind: np.dtype
    taps: Sequence[Operation] | None = None

    def stored(self, value: Tensor, op: Operation) -> np.ndarray:
        """What the graph has in place of `value`: codes of `op`, or its float values."""
        if op.grid is None:
            return value.numpy()
        return (value.numpy() + self.zero[op]).astype(self.kind)


class Whole(Protocol):
    """A whole program, with the codes of `taps` as further outputs."""

    def __call__(
        self, program: Program, *, preprocessing: Preprocessing | None = None, taps: Sequence[Operation] = ()
    ) -> CodedGraph: ...


def _none(program: Program) -> Mapping[Operation, Operation]:
    return {}


@dataclass(frozen=True)
class CodeGraphs:
    """What a format has for that.

    one: an operation on its own, its inputs "in0", "in1" ...; of two, the first of those that the format makes of the
    codes of the second, "in0" (`alignment.py`). None: a whole program may be given the codes of its taps as inputs
    "tap0", "tap1" ..., in place of those that it computes. pairs: {such an operation: the other} of a program.
    """

    whole: Whole
    one: Callable[..., CodedGraph] | None
    pairs: Callable[[Program], Mapping[Operation, Operation]] = _none
