"""Before training: what an export of a network would refuse or leave float, by layer, and what to write instead."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from spequant.calibration.ranges import calibrate
from spequant.deploy.formats import Format, ProgramFormat, format_named
from spequant.deploy.lowering import lower_all
from spequant.deploy.operations import Add, Clamp, FloatLayer, Operation, Unread
from spequant.functional import without_autocast
from spequant.layers import OUTPUT, Wrapper, act_quantizers, weight_quantizers
from spequant.names import some_of
from spequant.networks import copied
from spequant.preparation.placement import prepare
from spequant.processes import innermost
from spequant.quantizers import PACT, SAWB

BITS = 4
"""Of the layers of a float network that is checked."""
MIXED = "--to mixed (spequant.export_mixed) takes it, in float"


@dataclass(frozen=True)
class Finding:
    """One place of a network that has no integer form, or that stays float.

    Attributes:
        name: of the module, or of the step behind that of the module whose forward it stands in; "" the network.
        what: it is.
        instead: what to write or to do; "" where `what` says it.
    """

    name: str
    what: str
    instead: str = ""

    def __str__(self) -> str:
        place = f"{self.name}: " if self.name else ""
        return f"{place}{self.what}" + (f". {self.instead}" if self.instead else "")


@dataclass
class ExportCheck:
    """What an export would do; its str says it line by line.

    Attributes:
        format: name of the format.
        refused: why the export would be refused; empty: it would be written, where the answers are the network's.
        floats: what would be computed in float, in a file of integers.
    """

    format: str
    refused: list[Finding] = field(default_factory=list)
    floats: list[Finding] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it would be written."""
        return not self.refused

    @property
    def line(self) -> str:
        """In one line, behind the format's name: the first that is refused; or what is float, and what to do about the
        last of it, which those before go with."""
        if self.refused:
            more = len(self.refused) - 1
            return f"refused: {self.refused[0]}" + (f" ({more} more: spequant.check_export)" if more else "")
        if self.floats:
            names = some_of(list(dict.fromkeys(one.name or one.what for one in self.floats)))
            return f"in float: {names}. {self.floats[-1].instead}".removesuffix(". ")
        return "integers throughout"

    def __str__(self) -> str:
        lines = [f"refused by --to {self.format}: {finding}" for finding in self.refused]
        lines += [f"in float: {finding}" for finding in self.floats]
        if not lines:
            return f"--to {self.format}: integers throughout"
        return "\n".join(lines if self.refused else [f"--to {self.format}: written, with float parts", *lines])


@without_autocast
def check_export(model: nn.Module, example: Tensor | Mapping[str, Tensor], format: str = "onnx") -> ExportCheck:
    """Say what an export of `model` would refuse or leave float, before it is trained.

    Args:
        model: a network, prepared or not, calibrated or not; it stays as it is. One that is not prepared is looked at
            as `prepare(model, weight=SAWB(4), act=PACT(4), between=8)` would make it. Ranges that are missing are set
            from `example`: they decide nothing here.
        example: an input, batch first, or inputs by name.
        format: a name in `spequant.deploy.FORMATS`.

    Returns:
        The findings; `print` it, or ask for `ok`.

    Raises:
        ValueError: another format.
        ModuleNotFoundError: the extra `deploy` is not installed, where the format needs it.

    Example:
        print(spequant.check_export(model, images[:1], "onnx"))
    """
    form = format_named(format)
    check = ExportCheck(format)
    model = innermost(model)
    try:
        ready, untraced = _ready(model, example)
        check.floats += [Finding("", what) for what in untraced]
    except (ValueError, RuntimeError) as error:
        check.refused.append(Finding("", _first(error)))
        return check
    if not isinstance(form, ProgramFormat) or isinstance(example, Mapping):
        _of_draft(form, ready, example, check)
        return check
    try:
        program, problems = lower_all(ready, example)
    except (ValueError, RuntimeError) as error:
        check.refused.append(Finding("", str(error)))
        return check
    except Exception as error:  # the network's own, of a sample that it cannot take
        check.refused.append(Finding("", f"the network fails for the example: {type(error).__name__}: {error}"))
        return check
    check.refused += [Finding(name, what, MIXED) for name, what in problems]
    for op in program.ops:
        if isinstance(op, Unread):
            continue
        if not form.holds(op):
            check.refused.append(_refused(op, ready, format))
        elif op.in_float and not form.whole_numbers:
            check.floats.append(Finding(op.name, f"{op.WORD} computes in float", _advice(op, ready)))
    refused_names = {one.name for one in check.refused}
    faults = [] if problems else dict.fromkeys(form.faults(program))
    check.refused += [Finding(name, what) for name, what in faults if name not in refused_names]
    return check


def _refused(op: Operation, model: nn.Module, format: str) -> Finding:
    if op.in_float:
        return Finding(op.name, f"{op.WORD} computes in float, which the format {format} has not", _advice(op, model))
    return Finding(op.name, f"the format {format} has no {op.WORD}", MIXED)


def _ready(model: nn.Module, example: Any) -> tuple[nn.Module, list[str]]:
    """(a copy of `model` in eval mode, prepared and calibrated; what `prepare` says that could not be traced)."""
    untraced: list[str] = []
    if any(isinstance(m, Wrapper) for m in model.modules()):
        model = copied(model)
    else:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")  # layers that stay float are findings of their own
            model = prepare(model, weight=SAWB(BITS), act=PACT(BITS), between=8)
        untraced = [str(one.message) for one in said if "cannot be traced" in str(one.message)]
    quantizers = [*act_quantizers(model).values(), *weight_quantizers(model).values()]
    if not all(q.calibrated for q in quantizers):
        first = next(iter(example.values())) if isinstance(example, Mapping) else example
        with torch.no_grad():
            calibrate(model, [example], samples=len(first), reestimate=False)
    return model.eval(), untraced


def _of_draft(form: Format, model: nn.Module, example: Any, check: ExportCheck) -> None:
    """Of a format that is written without a program, by making what would be written."""
    try:
        draft = form.draft(model, example, None, None)
    except (ValueError, RuntimeError) as error:
        check.refused.append(Finding("", str(error)))
        return
    for island in draft.islands:
        name, _, what = island.partition(": ")
        check.floats.append(Finding(name, f"{what} computes in float"))


def _advice(op: Operation, model: nn.Module) -> str:
    if isinstance(op, FloatLayer):
        return "Give its weight and its input bits: see skip, ends and overrides of prepare"
    if isinstance(op, Clamp):
        return "It is computed as what reads it"
    if isinstance(op, Add):
        return (
            "Prepare with residual=8, and let a module of its own, called once, make each addend (nn.Identity() does)"
        )
    if not any(OUTPUT in m._modules for m in model.modules()):
        return "Prepare with between=8"
    return (
        "What it reads is not on a grid: prepare with between=8, and let a module of its own, called once, make that "
        "(nn.Identity() does)"
    )


def _first(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
