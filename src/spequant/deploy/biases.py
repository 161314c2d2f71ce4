"""Biases on the grid that integer arithmetic has for them: the network that is trained becomes the one that is run."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from spequant.deploy.bias_choice import agreeing_biases
from spequant.deploy.lowering import lower
from spequant.deploy.operations import Weighted
from spequant.deploy.program import Program
from spequant.deploy.scales import keep_layers_off_ties


@torch.no_grad()
def quantize_biases(model: nn.Module, example: Tensor) -> None:
    """Round the bias of each integer layer of a prepared and calibrated `model`, in place, to an int32 code, and its
    scale to a ratio at which no sum lies near a tie.

    An engine adds up products of codes; its bias is a whole number of their unit, input step * weight step, which at
    2 bits is some per cent of an output code. A low-bit network answers several per cent of images otherwise after
    such a change: so make it before the accuracy is measured, not in the export. What is moved is the bias of the batch
    norm that follows the layer, or of the layer itself; a batch norm without parameters (affine=False) is left as it
    is. Of the codes near a bias the nearest is taken with which engines that round a sum once or twice give it the same
    code, where there is one.

    The weight of a batch norm changes by a thousandth at most (`scales.py`), so that no result of the layer before it
    is nearly the middle between two codes: PyTorch and engines then give it the same one. A second call changes
    nothing.

    Args:
        model: the network; only its biases and the weights of its batch norms change.
        example: an input, batch first; only its shape counts.

    Raises:
        ValueError: as `lower`: no integer form.
    """
    layers: dict[int, list[Weighted]] = {}  # one that two quantizers read is there twice
    program = lower(model, example)
    if keep_layers_off_ties(program):
        program = lower(model, example)
    for op in program.weighted:
        if op.bias is not None:
            layers.setdefault(id(op.bias), []).append(op)
    for ops in layers.values():
        _round(ops)


def _round(ops: Sequence[Weighted]) -> None:
    """Move the bias that `ops` share."""
    op, bias = ops[0], ops[0].bias
    assert bias is not None
    by, unit = (v.view(len(bias), -1)[:, 0] for v in (_exact(op) - op.offset, _unit(op)))  # alike in all phases
    codes = agreeing_biases([op for op in ops if op.grid is not None], len(bias))
    move(bias, by + unit * torch.from_numpy(codes))


@torch.no_grad()
def off_grid(program: Program) -> list[str]:
    """The integer layers whose bias `quantize_biases` would move."""
    names = []
    for op in program.weighted:
        rounding = 0.01 * _unit(op) + 2**-22 * op.offset.abs()  # more than fp32 rounds by
        if op.bias is not None and bool(((_exact(op) - op.offset).abs() > rounding).any()):
            names.append(op.name)
    return list(dict.fromkeys(names))


def _unit(op: Weighted) -> Tensor:
    return (op.step * op.integers.scale).double()


def _exact(op: Weighted) -> Tensor:
    """What integer arithmetic adds."""
    return op.integers.bias.double() * _unit(op)


def move(bias: Tensor, by: Tensor) -> None:
    """Add `by`, fp64 on the CPU, to `bias`, in place and wherever that is; rounded once, or a second call of
    `quantize_biases` might move a last bit."""
    bias.copy_(bias.double().cpu() + by)
