"""From a network to the steps that it computes: traced once, each operation read by the tables of `operations/`.

Each way of writing an operation (module, function, method) has one entry there. An operation in place is read as the
same one that is not: `writes.py` has seen to who reads its result. The network runs beside the trace on two samples, so
that shapes are numbers: what follows from them is no operation, and what mixes samples is seen.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._pytree import tree_leaves

from spequant.calibration.batch_norm import PLAIN_FORWARDS
from spequant.calibration.batches import cloned, modes_kept
from spequant.deploy.advice import instead
from spequant.deploy.checks import check_dtype, check_forwards, check_hooks
from spequant.deploy.draws import run_without_draws
from spequant.deploy.operations import READ, SEVERAL, Displaced, Input, Operation, Step, Unread, settled
from spequant.deploy.operations.shaping import batch_of
from spequant.deploy.outputs import output_names
from spequant.deploy.writes import ShapedProxy, propagate
from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer
from spequant.networks import QUANTIZABLE
from spequant.preparation.tracing import DROPOUT_NAMES, defaults_of, shapes_unchecked
from spequant.quantizers import Quantizer

FUNCTIONS = {function: (kind, read) for kind in READ for function, read in kind.FUNCTIONS.items()}
METHODS = {method: (kind, read) for kind in READ for method, read in kind.METHODS.items()}
MODULES = [(module, kind, read) for kind in READ for module, read in kind.MODULES.items()]


CALL, GETATTR = nn.Module.__call__, nn.Module.__getattr__
"""As they are while nothing is traced."""


@dataclass(frozen=True)
class Trace:
    """steps: in the order of computing, those on which an output depends. outputs: which of them, by name."""

    steps: list[Step]
    outputs: Mapping[str, Step]


class _Tracer(fx.Tracer):
    """Sees quantizers of outputs, and the activation that timm's batch norm has inside, as steps of their own; and
    x += h as written in place, where fx would write x = x + h. It runs what it traces on `example`; what the input does
    not decide, and numbers, are what they are there. decided: the nodes that the input decides."""

    def __init__(self, example: Tensor):
        super().__init__()
        self.example = example
        self.decided = set[fx.Node]()

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **options: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **options)
        if kind == "output":
            return proxy
        with _untraced():
            value = self._run(kind, target, *(map_aggregate(a, _value) for a in (args, kwargs)))
        if kind == "placeholder" or any(node in self.decided for node in proxy.node.all_input_nodes):
            self.decided.add(proxy.node)
            if any(isinstance(x, Tensor) for x in tree_leaves(value)):
                return ShapedProxy(proxy.node, self, value)
        return value

    def _run(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return args[0] if args else self.example
        if kind == "get_attr":
            return _attribute(self.root, target)
        if kind == "call_module":
            return self.root.get_submodule(target).forward(*args, **kwargs)  # without its hooks
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        quantized = isinstance(m, (QuantizedLayer, QuantizedAdd, Quantizer, *QUANTIZABLE))
        norm = isinstance(m, _BatchNorm) and (type(m).forward in PLAIN_FORWARDS or hasattr(m, "act"))
        return quantized or norm or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        if type(m).__name__ in DROPOUT_NAMES and args and OUTPUT not in m._modules:
            return args[0]  # in eval mode
        out = super().call_module(m, forward, args, kwargs)
        if not self.is_leaf_module(m, name := self.path_of_module(m)):
            return out
        if isinstance(m, _BatchNorm) and hasattr(m, "act"):
            norm: Any = m
            out = norm.act(norm.drop(out))
        return self.create_proxy("call_module", f"{name}.{OUTPUT}", (out,), {}) if OUTPUT in m._modules else out


@contextmanager
def _untraced() -> Iterator[None]:
    """Inside a trace, modules that run leave no steps."""
    traced = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = CALL, GETATTR
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = traced


def _attribute(model: Any, path: str) -> Any:
    for part in path.split("."):
        model = getattr(model, part)
    return model


def _value(x: Any) -> Any:
    return x.value if isinstance(x, ShapedProxy) else x


def trace(model: nn.Module, example: Tensor, problems: list[tuple[str, str]] | None = None) -> Trace:
    """The steps on which the outputs of `model` depend. problems: where (name, why not) of each step goes that cannot
    be read, in whose place stands one of no kind; None: the first is an error.

    ValueError names what cannot be read: see `lower`.
    """
    check_dtype(model)
    check_hooks(model.named_modules())
    example = example.detach()
    two = torch.cat([example, example]) if len(example) == 1 else example
    leaf = _Tracer(two).is_leaf_module  # whatever is none runs while it is traced
    check_forwards((n, m) for n, m in model.named_modules() if m is model or leaf(m, n))
    out = run_without_draws(model, example)  # what is wrong with the network itself, it says itself
    with modes_kept(model), _attributes_kept(model):
        model.eval()
        graph = _graph(model, cloned(two))
        propagate(fx.GraphModule(model, graph), two)
        return _steps(model, graph, output_names(out, ("input",)), problems)


@torch.inference_mode(False)
@torch.no_grad()
def _graph(model: nn.Module, example: Tensor) -> fx.Graph:
    try:
        with shapes_unchecked():
            return _Tracer(example).trace(model, concrete_args=defaults_of(model))
    except Exception as error:
        raise ValueError(
            f"{type(model).__name__} cannot be traced for export ({error}): its forward decides by the values of "
            "tensors, or by what torch.fx does not follow; move that out of the network"
        ) from error


@contextmanager
def _attributes_kept(model: nn.Module) -> Iterator[None]:
    """At the end, the constants that a trace leaves in `model` are gone."""
    before = set(vars(model))
    try:
        yield
    finally:
        for name in set(vars(model)) - before:
            delattr(model, name)


def _steps(model: nn.Module, graph: fx.Graph, names: tuple[str, ...], problems: list[tuple[str, str]] | None) -> Trace:
    (out,) = next(node for node in graph.nodes if node.op == "output").args
    outputs = tree_leaves(out)
    needed = _needed(outputs)
    steps: dict[fx.Node, Step] = {}
    for node in graph.nodes:
        if node in needed and node.op != "get_attr":
            try:
                steps[node] = _read(node, model, steps)
            except ValueError as error:
                name = getattr(error, "place", _name(node))
                if problems is None:
                    raise ValueError(f"{name}: {error}") from error.__cause__
                problems.append((name, str(error)))
                steps[node] = Step(_name(node), Unread, shape=_shape_or_none(node))
    count = sum(step.kind is Input for step in dict.fromkeys(steps.values()))
    if count != 1:
        raise ValueError(f"the network reads {count} inputs; expected one tensor")
    by_name = dict(zip(names, (steps[o] for o in outputs), strict=True))
    for name, step in by_name.items():
        _check_output(name, step, problems)
    passed = (*SEVERAL, Displaced)
    return Trace([step for step in dict.fromkeys(steps.values()) if step.kind not in passed], by_name)


def _check_output(name: str, step: Step, problems: list[tuple[str, str]] | None) -> None:
    """ValueError: the batch is not its first dimension."""
    if step.kind is Unread or (step.kind is not Displaced and step.shape[:1] == (batch_of(step),)):
        return
    why = (
        f"the shape {step.shape}, of which the first is not the batch, has no form here; expected outputs of one row a "
        "sample: reshape it to (batch, ...)"
    )
    if problems is None:
        raise ValueError(f"{name}: {why}")
    problems.append((name, why))


def _needed(outputs: list[Any]) -> set[fx.Node]:
    """The nodes among `outputs` and those that they depend on. ValueError: an output that is no tensor of the
    trace."""
    for out in outputs:
        if not isinstance(out, fx.Node):
            raise ValueError(f"the network gives {out!r}, which no input decides; expected tensors: leave it out")
    needed, unseen = set(outputs), list(outputs)
    while unseen:
        new = set(unseen.pop().all_input_nodes) - needed
        needed |= new
        unseen += new
    return needed


def _name(node: fx.Node) -> str:
    """Of a module its own; else that of `node` behind that of the module whose forward it stands in: "layer1.0.add"."""
    if node.op == "call_module":
        return str(node.target)
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    inside = next((path for path, _ in reversed(stack) if path), "")
    return f"{inside}.{node.name}" if inside and node.op != "placeholder" else node.name


def _read(node: fx.Node, model: nn.Module, steps: dict[fx.Node, Step]) -> Step:
    """ValueError: an operation that no table has, or of a form that has no place."""
    name = _name(node)
    if node.op == "placeholder":
        return Step(name, Input, shape=_shape(node))
    arguments = map_aggregate((node.args, node.kwargs), lambda a: _constant(a, model))
    inputs = tuple(steps[a] for a in tree_leaves(arguments) if isinstance(a, fx.Node))  # one may be there twice
    module = model.get_submodule(name) if node.op == "call_module" else None
    kind, attributes = _of_call(node, *arguments) if module is None else _of_module(module)
    meta: Any = node.meta.get("tensor_meta")
    if kind in SEVERAL and not hasattr(meta, "shape"):
        attributes["shapes"] = [tuple(part.shape) for part in meta]
        return Step(name, kind, inputs, (), attributes)
    return settled(Step(name, kind, inputs, _shape(node), attributes, module))


def _constant(argument: Any, model: nn.Module) -> Any:
    """The tensor that an argument stands for which is the network's own."""
    if not isinstance(argument, fx.Node) or argument.op != "get_attr":
        return argument
    return _attribute(model, str(argument.target))


def _shape_or_none(node: fx.Node) -> tuple[int, ...]:
    meta: Any = node.meta.get("tensor_meta")
    return tuple(meta.shape) if hasattr(meta, "shape") else ()


def _shape(node: fx.Node) -> tuple[int, ...]:
    meta: Any = node.meta.get("tensor_meta")
    if not hasattr(meta, "shape"):
        raise ValueError(f"it gives {type(meta).__name__}; expected a tensor")
    return tuple(meta.shape)


def _check_type(node: fx.Node) -> None:
    """ValueError: `node` converts floating-point numbers to another type, by whatever form: to(torch.int64), to(other),
    type_as(other), float(), a function's dtype=."""
    before, after = (getattr(n.meta.get("tensor_meta"), "dtype", None) for n in (node.all_input_nodes[0], node))
    if after is not None and before == torch.float32 and after != before:
        raise ValueError(f"it converts to {after}, which changes numbers; expected torch.float32")


def _of_module(module: nn.Module) -> tuple[type[Operation], dict[str, Any]]:
    for module_kind, kind, read in MODULES:
        if isinstance(module, module_kind):
            return kind, read(module)
    name = type(module).__name__
    raise ValueError(f"{name} has no integer form{instead(name)}")


def _of_call(node: fx.Node, args: Any, kwargs: Any) -> tuple[type[Operation], dict[str, Any]]:
    table: dict[Any, Any] = METHODS if node.op == "call_method" else FUNCTIONS
    if node.target not in table:
        what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        raise ValueError(
            f"the operation {what} has no integer form{instead(str(what))}; known are convolutions and linear layers, "
            "batch norm, ReLU and clamps, functions of single numbers, pooling, sums and products, reshaping, slicing, "
            "padding, concatenation and upsampling"
        )
    if "out" in node.kwargs:
        raise ValueError("out= has no integer form; expected the result that the operation returns")
    _check_type(node)
    kind, read = table[node.target]
    try:
        return kind, read(*args[0 if kind.OPERANDS else 1 :], **kwargs)
    except TypeError as error:  # arguments that the reading does not know, or that are tensors
        raise ValueError(f"called so it has no integer form ({error})") from error
