"""From a prepared network to a `Program`: its steps, read backwards from the output.

Where a quantizer reads a tensor, its grid is carried back through everything that commutes with rounding (ReLU and
other clamps, max pooling, reshaping, concatenation, slicing, padding) to where the numbers arise: there the sums of a
layer, of an addition or of a mean of codes, or a product of codes, are rounded to that grid at once. A tensor that two
quantizers read arises twice. So the integers are those of the fake-quantized network, and nothing is rounded twice but
what the network itself rounds twice. What each operation does with a grid stands in its class (`operations/`).
"""

from typing import Any

from torch import Tensor, nn

from spequant.deploy.checks import on_no_integers
from spequant.deploy.grids import Grid, act_grid
from spequant.deploy.operations import Add, Input, Operation, Quantize, Step, Weighted
from spequant.deploy.program import Program
from spequant.deploy.trace import Trace, trace
from spequant.functional import without_autocast


@without_autocast
def lower(model: nn.Module, example: Tensor) -> Program:
    """The integer program of a prepared and calibrated `model` at the precision in use.

    Args:
        model: the network; it stays as it is.
        example: an input, batch first; only its shape counts.

    Raises:
        RuntimeError: not calibrated.
        ValueError: names what has no integer form: control flow that cannot be traced, an operation that is not known,
            a layer without a weight quantizer behind quantized activations, an activation quantizer that is no grid, a
            hook, random numbers in eval mode, a view of a tensor that is written to in place; a network no layer of
            which computes on integers.
    """
    program = _Lowering(trace(model, example)).program()
    if not any(isinstance(op, Weighted) or (isinstance(op, Add) and op.of_codes) for op in program.ops):
        raise on_no_integers(model)
    return program


class _Lowering:
    """ops: of the program, as far as it is made. done: what stands for a step in float, or for (a step, on a grid)."""

    def __init__(self, trace: Trace):
        self.steps, self.outputs = trace.steps, trace.outputs
        self.ops: list[Operation] = []
        self.done: dict[Any, Operation] = {}

    def program(self) -> Program:
        self.value(next(step for step in self.steps if step.kind is Input))
        for step in self.steps:  # in order, so that no read goes back farther than to the quantizers before it
            for source, quantizer in step.kind.reads(step):
                self.codes(source, act_grid(quantizer))
        outputs = {name: self.value(step) for name, step in self.outputs.items()}
        return Program(self.ops, next(iter(outputs.values())), outputs)

    def add(self, op: Operation) -> Operation:
        self.ops.append(op)
        return op

    def value(self, step: Step) -> Operation:
        """`step` in float; of a quantizer, its codes."""
        if step not in self.done:
            kind, grid = step.kind, step.own_grid
            if grid is None:
                self.done[step] = kind.arising(step, None, self) or kind.floating(step, self)
            else:
                self.done[step] = self.codes(step, grid)
        return self.done[step]

    def codes(self, step: Step, grid: Grid) -> Operation:
        """`step` on `grid`."""
        key, kind = (step, grid), step.kind
        if key not in self.done:
            carried = kind.carried(step, grid, self) or kind.arising(step, grid, self)
            self.done[key] = carried or self.add(Quantize(step.name, (self.value(step),), grid, step.shape))
        return self.done[key]
