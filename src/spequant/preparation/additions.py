"""Residual additions that a network does not mark, found by tracing; what is traced is a copy, never run or trained."""

import operator
from dataclasses import dataclass

import torch
from torch import fx, nn

from spequant.networks import copied
from spequant.preparation.tracing import Tracer, traced

ADD = (operator.add, operator.iadd, torch.add, "add", "add_")


@dataclass(frozen=True)
class Additions:
    """found: names of the modules whose outputs are added, (one, other), for each addition of two activations that
    modules make. missed: of every other addition of two activations, where it stands and why it cannot be quantized.
    """

    found: list[tuple[str, str]]
    missed: list[str]


def find_additions(model: nn.Module) -> Additions:
    """The additions of two activations in the float network `model`, those aside that it marks itself.

    A module makes an addend that is called once and is no container; of several that return the same tensor the
    innermost does. Missed is an addition of what no such module makes: of a function's result (F.relu), or of a block's
    own first sum.

    ValueError: `model` cannot be traced: its forward decides by values, or by what a placeholder cannot tell.
    """
    if Tracer().is_leaf_module(model, ""):
        return Additions([], [])
    tracer, graph = traced(copied(model).eval())
    found: list[tuple[str, str]] = []
    missed: list[str] = []
    fed = _fed(graph)
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and node.target in ADD:
            sides = *node.args, node.kwargs.get("input"), node.kwargs.get("other")
            addends = [a for a in sides if isinstance(a, fx.Node) and a in fed]
            makers = [tracer.maker(a) for a in addends]
            if len(makers) == 2 and makers[0] is not None and makers[1] is not None:
                found.append((makers[0], makers[1]))
            elif len(makers) == 2:
                missed.append(_missed(node, [a for a, maker in zip(addends, makers, strict=True) if maker is None]))
    return Additions(found, missed)


def _missed(node: fx.Node, unmade: list[fx.Node]) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    where = next((name for name, _ in reversed(list(stack.values())) if name), "the network's own forward")
    made = " and ".join(dict.fromkeys(_what(addend) for addend in unmade))
    return f"{where}: no module that runs once makes {made}"


def _what(node: fx.Node) -> str:
    if node.op == "placeholder":
        return "the input"
    if node.op == "call_module":
        return f"the output of {node.target}"
    return f"the result of {getattr(node.target, '__name__', str(node.target))}"


def _fed(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on the network's input."""
    fed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(i in fed for i in node.all_input_nodes):
            fed.add(node)
    return fed
