"""From a prepared network to a `Program`: its steps, read backwards from the output.

Where a quantizer reads a tensor, its grid is carried back through everything that commutes with rounding (ReLU and
other clamps, max pooling, reshaping, concatenation, slicing, padding) to where the numbers arise: there the sums of a
layer, of an addition or of a mean of codes, or a product of codes, are rounded to that grid at once. A tensor that two
quantizers read arises twice. So the integers are those of the fake-quantized network, and nothing is rounded twice but
what the network itself rounds twice. What each operation does with a grid stands in its class (`operations/`).
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from spequant.deploy.checks import on_no_integers
from spequant.deploy.grids import Grid, act_grid
from spequant.deploy.operations import Add, Function, Input, Operation, Quantize, Step, Unread, Weighted
from spequant.deploy.program import Program
from spequant.deploy.trace import Trace, trace
from spequant.deploy.weights_once import weights_once
from spequant.functional import without_autocast
from spequant.quantizers import Quantizer


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
    with weights_once(model):
        program = _Lowering(trace(model, example)).program()
    if not any(on_integers(op) for op in program.ops):
        raise on_no_integers(model)
    return _of_one_sample(program)


def lower_all(model: nn.Module, example: Tensor) -> tuple[Program, list[tuple[str, str]]]:
    """As much of the program of `model` as there is, and (name, why not) of each step that has no form. Arguments and
    errors as `lower`'s; errors are those of the network as a whole."""
    program, problems = lower_what_can_be(model, example)
    if not problems and not any(on_integers(op) for op in program.ops):
        raise on_no_integers(model)
    return program, problems


def lower_what_can_be(model: nn.Module, example: Tensor) -> tuple[Program, list[tuple[str, str]]]:
    """As `lower_all`, of a network without layers on integers, too."""
    problems: list[tuple[str, str]] = []
    with weights_once(model):
        program = _Lowering(trace(model, example, problems), problems).program()
    return _of_one_sample(program), list(dict.fromkeys(problems))


def _of_one_sample(program: Program) -> Program:
    """`program`, which was read off two samples, to see what mixes them; one may be several rows."""
    samples = program.input.shape[0]
    parts = [part for op in program.ops if isinstance(op, Function) for part in op.parts]
    for op in dict.fromkeys([*program.ops, *parts]):
        op.shape = (*(n // samples for n in op.shape[:1]), *op.shape[1:])
    return program


def on_integers(op: Operation) -> bool:
    """Whether it is a layer or an addition on codes, at least one of which a program has."""
    return isinstance(op, Weighted) or (isinstance(op, Add) and op.of_codes)


class _Lowering:
    """ops: of the program, as far as it is made. done: what stands for a step in float, or for (a step, on a grid).
    problems: (name, why not) of steps without a form, in whose place stands one of no kind; None: they are errors."""

    def __init__(self, trace: Trace, problems: list[tuple[str, str]] | None = None):
        self.steps, self.outputs, self.problems = trace.steps, trace.outputs, problems
        self.ops: list[Operation] = []
        self.done: dict[Any, Operation] = {}

    def program(self) -> Program:
        self.value(next(step for step in self.steps if step.kind is Input))
        for step in self.steps:  # in order, so that no read goes back farther than to the quantizers before it
            for source, quantizer in step.kind.reads(step):
                if (grid := self._grid(step, quantizer)) is not None:
                    self.codes(source, grid)
        outputs = {name: self.value(step) for name, step in self.outputs.items()}
        return Program(self.ops, next(iter(outputs.values())), outputs)

    def add(self, op: Operation) -> Operation:
        self.ops.append(op)
        return op

    def value(self, step: Step) -> Operation:
        """`step` in float; of a quantizer, its codes."""
        if step not in self.done:
            self.done[step] = self._tried(step, None, lambda: self._value(step))
        return self.done[step]

    def _value(self, step: Step) -> Operation:
        kind, grid = step.kind, step.own_grid
        if grid is not None:
            return self.codes(step, grid)
        return kind.arising(step, None, self) or kind.floating(step, self)

    def codes(self, step: Step, grid: Grid) -> Operation:
        """`step` on `grid`."""
        key = step, grid
        if key not in self.done:
            self.done[key] = self._tried(step, grid, lambda: self._codes(step, grid))
        return self.done[key]

    def _codes(self, step: Step, grid: Grid) -> Operation:
        kind = step.kind
        lowered = kind.carried(step, grid, self) or Function.of(step, grid, self) or kind.arising(step, grid, self)
        return lowered or self.add(Quantize(step.name, (self.value(step),), grid, step.shape))

    def _grid(self, step: Step, quantizer: Quantizer) -> Grid | None:
        try:
            return act_grid(quantizer)
        except ValueError as error:
            self._noted(step, error)
            return None

    def _tried(self, step: Step, grid: Grid | None, make: Callable[[], Operation]) -> Operation:
        try:
            return make()
        except ValueError as error:
            self._noted(step, error)
            return self.add(Unread(step.name, (), grid, step.shape))

    def _noted(self, step: Step, error: ValueError) -> None:
        if self.problems is None:
            raise error
        text = str(error)
        self.problems.append((step.name, text.removeprefix(f"{step.name}: ")))
