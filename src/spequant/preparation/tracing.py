"""The graph of a network that torch.fx can trace, and which module returns each of its tensors."""

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
DROPOUT_NAMES = (
    *("AlphaDropout", "Dropout", "Dropout1d", "Dropout2d", "Dropout3d", "DropPath", "FeatureAlphaDropout"),
    "StochasticDepth",
)
"""Classes of modules that scale what they do not drop in training, so that a quantizer belongs before them."""


def traced(network: nn.Module) -> tuple["Tracer", fx.Graph]:
    """Trace `network`.

    Args:
        network: A copy of the user's network, in eval mode: a forward may store the placeholders of the trace.

    Returns:
        (the tracer, which knows the modules that return each node; the graph).

    Raises:
        ValueError: `network` cannot be traced: its forward depends on values, or on something that a placeholder for
            an input does not have. The message is one sentence.
    """
    tracer = Tracer()
    try:
        with shapes_unchecked():
            return tracer, tracer.trace(network, concrete_args=defaults_of(network))
    except Exception as error:
        raise ValueError(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Say in one sentence why tracing failed."""
    message = (str(error).strip() or type(error).__name__).splitlines()[0]
    if "co_varnames" in message:
        return (
            "its forward takes *args or **kwargs, as decorated ones do (transformers' networks), which hide its inputs"
        )
    message = message.partition(". ")[0]
    if isinstance(error, TraceError):
        return message
    return f"its forward does not run on a placeholder for an input ({type(error).__name__}: {message})"


@contextmanager
def shapes_unchecked() -> Iterator[None]:
    """Switch run-time checks of annotated shapes off inside the block, because placeholders of a trace fail them."""
    before = jaxtyping.config.jaxtyping_disable
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", before)


def defaults_of(model: nn.Module) -> dict[str, Any] | None:
    """Return the default values of the optional arguments of `model`, or None if it has none.

    The trace uses them as they are. A placeholder for a mask would not be None, and take another branch.
    """
    parameters = inspect.signature(model.forward).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty} or None


class Tracer(fx.Tracer):
    """A tracer that records which modules return each node, and how often each module is called.

    A module that is not traced inside and returns several tensors may name, as its attribute `makes_first`, the layer
    that returns the first of them.

    Attributes:
        returned_by: {node: names of the modules that return it, the innermost first}.
        first_by: {node of several results: name of the layer that returns the first}.
        calls: {name of a module: how often it is called}.
    """

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(_opaque("get_notrace_functions")))
        self.opaque = tuple(_opaque("get_notrace_modules"))
        self.returned_by: dict[fx.Node, list[str]] = {}
        self.first_by: dict[fx.Node, str] = {}
        self.calls: Counter[str] = Counter()

    def proxy(self, node: fx.Node) -> fx.Proxy:
        count = _pieces(node)
        return super().proxy(node) if count is None else _Pieces(node, self, count)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        is_leaf = isinstance(m, (*QUANTIZABLE, *self.opaque)) or getattr(m, "residual_addition", False)
        is_leaf = is_leaf or type(m).__module__.startswith(adapters.__name__) or type(m).__name__ in DROPOUT_NAMES
        return is_leaf or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        name = self.path_of_module(m)
        self.calls[name] += 1
        if isinstance(out, fx.Proxy) and not isinstance(m, CONTAINERS):
            self.returned_by.setdefault(out.node, []).append(name)
            if layer := getattr(m, "makes_first", None):
                self.first_by[out.node] = f"{name}.{layer}"
                self.calls[f"{name}.{layer}"] += 1
        return out

    def maker(self, node: fx.Node) -> str | None:
        """Return the name of the innermost module that returns `node` and is called once, before dropout, or None."""
        names = self._makers(node)
        while names and type(self.root.get_submodule(names[0])).__name__ in DROPOUT_NAMES:
            before = node.all_input_nodes[0]
            if not (earlier := self._makers(before)):
                break
            node, names = before, earlier
        return next((n for n in names if n and self.calls[n] == 1), None)

    def _makers(self, node: fx.Node) -> list[str]:
        """Return the modules that return `node`, the innermost first; for the first of several results, its layer."""
        if node.target is operator.getitem and node.args[1] == 0 and node.args[0] in self.first_by:
            return [self.first_by[node.args[0]]]
        return self.returned_by.get(node, [])


class _Pieces(fx.Proxy):
    """The tensors that one was cut into, so many that a list can be made of them."""

    def __init__(self, node: fx.Node, tracer: fx.Tracer, count: int):
        super().__init__(node, tracer)
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(self.count))  # type: ignore[index]


def _pieces(node: fx.Node) -> int | None:
    """How many tensors `node` gives, where that is written in it."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op not in ("call_function", "call_method") or name not in ("chunk", "split", "tensor_split"):
        return None
    sizes = next(
        (node.kwargs[k] for k in PIECE_ARGUMENTS if k in node.kwargs), node.args[1] if len(node.args) > 1 else None
    )
    if isinstance(sizes, list | tuple):
        return len(sizes) + (name == "tensor_split")
    return sizes if isinstance(sizes, int) and name == "chunk" else None


PIECE_ARGUMENTS = (
    "chunks",
    "split_size",
    "split_size_or_sections",
    "sections",
    "indices",
    "tensor_indices_or_sections",
)


def _opaque(which: str) -> Iterator[Any]:
    """Yield what timm lists as not to be traced inside, if timm is imported; which: the name of timm's list."""
    if "timm" in sys.modules:
        from timm import layers

        yield from getattr(layers, which)()
