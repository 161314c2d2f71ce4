"""The graph of a network that torch.fx can trace, and which module makes or reads what in it."""

import inspect
import operator
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jaxtyping
from torch import fx, nn
from torch.fx.proxy import TraceError

from spequant.networks import QUANTIZABLE
from spequant.preparation import adapters

CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
DROPS = ("Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "StochasticDepth", "DropPath")
"""They scale what they let through while training: a range belongs before them."""


def traced(network: nn.Module) -> tuple["Tracer", fx.Graph]:
    """The graph of `network`, which should be a copy, in eval mode: a forward may keep what it is traced with.

    ValueError: it cannot be traced: its forward decides by values, or by what a placeholder cannot tell.
    """
    tracer = Tracer()
    try:
        with shapes_unchecked():
            return tracer, tracer.trace(network, concrete_args=defaults_of(network))
    except Exception as error:
        raise ValueError(_why(error)) from error


def _why(error: Exception) -> str:
    """Why tracing failed, in a sentence."""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "co_varnames" in said:
        return (
            "its forward takes *args or **kwargs, as decorated ones do (transformers' networks), which hide its inputs"
        )
    said = said.partition(". ")[0]
    if isinstance(error, TraceError):
        return said
    return f"its forward does not run on a placeholder for an input ({type(error).__name__}: {said})"


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """Run-time checks of annotated shapes off, where somebody switched them on: what is traced are no tensors."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def defaults_of(model: nn.Module) -> dict[str, Any] | None:
    """The optional arguments of `model`, as they are when nobody gives them: a mask that is None is no tensor."""
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} or None


class Tracer(fx.Tracer):
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
