"""Residual additions that a network does not mark, found by tracing a copy that is never run or trained."""

import operator
from dataclasses import dataclass

import torch
from torch import fx, nn

from spequant.networks import copied
from spequant.preparation.tracing import Tracer, traced

ADD = (operator.add, operator.iadd, torch.add, "add", "add_")


FORM_ATTRIBUTES = {"device", "dtype", "is_cuda", "itemsize", "layout", "nbytes", "ndim", "requires_grad", "shape"}
FORM_NAMES = {
    *("dim", "element_size", "is_floating_point", "len", "ndimension", "nelement", "numel", "size", "stride"),
    *(f"{what}_like" for what in ("empty", "full", "ones", "rand", "randint", "randn", "zeros")),
    *(f"new_{what}" for what in ("empty", "full", "ones", "tensor", "zeros")),
}
"""Attributes, functions and methods that tell of a tensor's shape and type, or make others of these."""


@dataclass(frozen=True)
class Additions:
    """The additions of two activations in a network.

    Attributes:
        pairs: For each addition whose addends can be quantized, the names of the modules that return them.
        missed: For each other addition, a line that says where it is and why its addends cannot be quantized.
    """

    pairs: list[tuple[str, str]]
    missed: list[str]


def find_additions(model: nn.Module) -> Additions:
    """Find the additions of two activations in a float network, except those that it marks itself.

    An addend can be quantized if a module returns it that is called once and is no container; where several modules
    return the same tensor, the innermost counts. An addition is missed if one of its addends is the result of a
    function (F.relu) or of another addition.

    Args:
        model: The float network; it is copied before it is traced.

    Returns:
        The additions, in the order in which they run.

    Raises:
        ValueError: `model` cannot be traced: its forward depends on values, or on something that a placeholder for an
            input does not have.
    """
    if Tracer().is_leaf_module(model, ""):
        return Additions([], [])
    tracer, graph = traced(copied(model).eval())
    pairs: list[tuple[str, str]] = []
    missed: list[str] = []
    activations = activations_of(graph)
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and node.target in ADD:
            sides = *node.args, node.kwargs.get("input"), node.kwargs.get("other")
            addends = [a for a in sides if isinstance(a, fx.Node) and a in activations]
            makers = [tracer.maker(a) for a in addends]
            if len(makers) == 2 and makers[0] is not None and makers[1] is not None:
                pairs.append((makers[0], makers[1]))
            elif len(makers) == 2:
                missed.append(_missed(node, [a for a, maker in zip(addends, makers, strict=True) if maker is None]))
    return Additions(pairs, missed)


def _missed(node: fx.Node, unmade: list[fx.Node]) -> str:
    """Say where the addition `node` is, and which of its addends no module returns."""
    stack = node.meta.get("nn_module_stack") or {}
    place = next((name for name, _ in reversed(list(stack.values())) if name), "the network's own forward")
    addends = " and ".join(dict.fromkeys(_described(addend) for addend in unmade))
    return f"{place}: no module that runs once makes {addends}"


def _described(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the input"
    if node.op == "call_module":
        return f"the output of {node.target}"
    return f"the result of {getattr(node.target, '__name__', str(node.target))}"


def activations_of(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes that depend on the numbers of the network's input, and not on its shape or type alone."""
    activations: set[fx.Node] = set()
    for node in graph.nodes:
        follows = not _asks_for_its_form(node) and any(i in activations for i in node.all_input_nodes)
        if node.op == "placeholder" or follows:
            activations.add(node)
    return activations


def _asks_for_its_form(node: fx.Node) -> bool:
    """Whether `node` is the shape, the type or the like of a tensor."""
    if node.target is getattr:
        return node.args[1] in FORM_ATTRIBUTES
    name = node.target if node.op == "call_method" else getattr(node.target, "__name__", "")
    return node.op in ("call_function", "call_method") and name in FORM_NAMES
