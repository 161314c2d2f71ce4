"""Residual additions that a network does not mark, found by tracing; what is traced is a copy, never run or trained."""

import copy
import inspect
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
import torch
from torch import fx, nn

from spequant import adapters
from spequant.kinds import QUANTIZABLE

ADD = (operator.add, operator.iadd, torch.add, "add", "add_")
CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
DROPS = ("Dropout", "Dropout2d", "StochasticDepth", "DropPath")
"""They scale what they let through while training: a range belongs before them."""


def find_additions(model: nn.Module) -> list[tuple[str, str]]:
    """(name, name) of the modules whose outputs are added, for each addition of two activations that modules make.

    A module counts that is called once and is no container; of several that return the same tensor the innermost. An
    addition is left out where one addend is made by no such module, as where a block adds twice, the second time to
    its own first sum.

    ValueError: `model` cannot be traced: its forward decides by values, or by what a placeholder cannot tell.
    """
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):
        return []
    try:
        with shapes_unchecked():
            graph = tracer.trace(copy.deepcopy(model).eval(), concrete_args=_defaults(model))
    except Exception as error:
        raise ValueError(f"{(str(error).strip() or type(error).__name__).splitlines()[0]}") from error
    found = []
    fed = _fed(graph)
    for node in graph.nodes:
        if node.op in ("call_function", "call_method") and node.target in ADD:
            sides = *node.args, node.kwargs.get("input"), node.kwargs.get("other")
            addends = [a for a in sides if isinstance(a, fx.Node) and a in fed]
            makers = [tracer.maker(a) for a in addends]
            if len(makers) == 2 and makers[0] is not None and makers[1] is not None:
                found.append((makers[0], makers[1]))
    return found


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """Run-time checks of annotated shapes off, where somebody switched them on: what is traced are no tensors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def _defaults(model: nn.Module) -> dict[str, Any] | None:
    """The optional arguments of `model`, as they are when nobody gives them: a mask that is None is no tensor."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} or None


def _fed(graph: fx.Graph) -> set[fx.Node]:
    """Nodes that depend on the network's input."""
    fed: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or any(i in fed for i in node.all_input_nodes):
            fed.add(node)
    return fed


class _Tracer(fx.Tracer):
    """Notes which modules return which node, the innermost first, and how often each is called. A module that is not
    looked into and returns several tensors names the layer that makes the first, `makes_first`."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(_opaque("get_notrace_functions")))
        self.opaque = tuple(_opaque("get_notrace_modules"))
        self.made: dict[fx.Node, list[str]] = {}
        self.first: dict[fx.Node, str] = {}
        self.calls: Counter[str] = Counter()

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kept = isinstance(m, (*QUANTIZABLE, *self.opaque)) or getattr(m, "residual_addition", False)
        kept = kept or type(m).__module__.startswith(adapters.__name__) or type(m).__name__ in DROPS
        return kept or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        name = self.path_of_module(m)
        self.calls[name] += 1
        if isinstance(out, fx.Proxy) and not isinstance(m, CONTAINERS):
            self.made.setdefault(out.node, []).append(name)
            if first := getattr(m, "makes_first", None):
                self.first[out.node] = f"{name}.{first}"
                self.calls[f"{name}.{first}"] += 1
        return out

    def maker(self, node: fx.Node) -> str | None:
        """The module that makes `node`, or None."""
        names = self._makers(node)
        while names and type(self.root.get_submodule(names[0])).__name__ in DROPS:
            before = node.all_input_nodes[0]
            if not (earlier := self._makers(before)):
                break
            node, names = before, earlier
        return next((n for n in names if n and self.calls[n] == 1), None)

    def _makers(self, node: fx.Node) -> list[str]:
        """All modules that make `node`, the innermost first; of the first of several results, the layer behind it."""
        if node.target is operator.getitem and node.args[1] == 0 and node.args[0] in self.first:
            return [self.first[node.args[0]]]
        return self.made.get(node, [])


def _opaque(which: str) -> Iterator[Any]:
    """What timm says that tracing must not look into, where timm is in use."""
    if "timm" in sys.modules:
        from timm import layers

        yield from getattr(layers, which)()
