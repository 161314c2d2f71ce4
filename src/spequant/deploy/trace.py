"""From a network to the steps that it computes: traced once, each operation read by the tables of `operations/`.

Each way of writing an operation (module, function, method) has one entry there. An operation in place is read as the
same one that is not: `writes.py` has seen to who reads its result.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spequant.calibration.batch_norm import PLAIN, modes_kept
from spequant.deploy.checks import check_dtype, check_forwards, check_hooks
from spequant.deploy.draws import run_without_draws
from spequant.deploy.operations import READ, Add, Concat, Input, Mul, Operation, Step
from spequant.deploy.writes import WritingProxy, propagate
from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer
from spequant.networks import QUANTIZABLE
from spequant.preparation.tracing import defaults_of, shapes_unchecked
from spequant.quantizers import Quantizer

FUNCTIONS = {function: (kind, read) for kind in READ for function, read in kind.FUNCTIONS.items()}
METHODS = {method: (kind, read) for kind in READ for method, read in kind.METHODS.items()}
MODULES = [(module, kind, read) for kind in READ for module, read in kind.MODULES.items()]


class _Tracer(fx.Tracer):
    """Sees quantizers of outputs, and the activation that timm's batch norm has inside, as steps of their own; and
    x += h as written in place, where fx would write x = x + h."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return WritingProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        quantized = isinstance(m, (QuantizedLayer, QuantizedAdd, Quantizer, *QUANTIZABLE))
        norm = isinstance(m, _BatchNorm) and (type(m).forward in PLAIN or hasattr(m, "act"))
        return quantized or norm or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        if not self.is_leaf_module(m, name := self.path_of_module(m)):
            return out
        if isinstance(m, _BatchNorm) and hasattr(m, "act"):
            norm: Any = m
            out = norm.act(norm.drop(out))
        return self.create_proxy("call_module", f"{name}.{OUTPUT}", (out,), {}) if OUTPUT in m._modules else out


def trace(model: nn.Module, example: Tensor) -> list[Step]:
    """The steps on which the output of `model` depends, in the order of computing: the last gives the output.

    ValueError names what cannot be read: see `lower`.
    """
    check_dtype(model)
    check_hooks(model.named_modules())
    leaf = _Tracer().is_leaf_module  # whatever is none runs while it is traced
    check_forwards((n, m) for n, m in model.named_modules() if m is model or leaf(m, n))
    run_without_draws(model, example)  # what is wrong with the network itself, it says itself
    with modes_kept(model):
        model.eval()
        try:
            with shapes_unchecked():
                graph = _Tracer().trace(model, concrete_args=defaults_of(model))
        except Exception as error:
            raise ValueError(
                f"{type(model).__name__} cannot be traced for export ({error}): its forward decides by the values of "
                "tensors, or by what torch.fx does not follow; move that out of the network"
            ) from error
        propagate(fx.GraphModule(model, graph), example.detach())
    return _steps(model, graph)


def _steps(model: nn.Module, graph: fx.Graph) -> list[Step]:
    (out,) = next(node for node in graph.nodes if node.op == "output").args
    if not isinstance(out, fx.Node):
        raise ValueError(f"the network gives {type(out).__name__}; expected one tensor: wrap it")
    needed = _needed(out)
    steps: dict[fx.Node, Step] = {}
    for node in graph.nodes:
        if node in needed:
            steps[node] = _read(node, model, steps)
    inputs = [step for step in steps.values() if step.kind is Input]
    for step in steps.values():
        if step.kind.IMAGES and len(step.inputs[0].shape) != 4:
            raise ValueError(
                f"{step.name}: {step.kind.WORD} on {len(step.inputs[0].shape)} dimensions has no form here; "
                "expected 4, (batch, channels, height, width)"
            )
    if len(inputs) != 1:
        raise ValueError(f"the network reads {len(inputs)} inputs; expected one tensor")
    return list(steps.values())


def _needed(out: fx.Node) -> set[fx.Node]:
    """`out` and the nodes that it depends on."""
    needed, unseen = {out}, [out]
    while unseen:
        new = set(unseen.pop().all_input_nodes) - needed
        needed |= new
        unseen += new
    return needed


def _name(node: fx.Node) -> str:
    """The name of `node` behind that of the module whose forward it stands in: "layer1.0.add"."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    inside = next((path for path, _ in reversed(stack) if path), "")
    return f"{inside}.{node.name}" if inside and node.op != "placeholder" else node.name


def _read(node: fx.Node, model: nn.Module, steps: dict[fx.Node, Step]) -> Step:
    """ValueError: an operation that no table has."""
    name = _name(node)
    if node.op == "placeholder":
        return Step(name, Input, shape=_shape(node))
    inputs = tuple(a for a in (*node.args, *node.kwargs.values()) if isinstance(a, fx.Node))  # one may be there twice
    module = None
    if node.op == "call_module":
        name, module = str(node.target), model.get_submodule(str(node.target))
        kind, attributes = _of_module(module, name)
    else:
        kind, attributes = _of_call(node, name)
    if kind in (Add, Mul) and module is None and len(inputs) != 2:
        raise ValueError(f"{name}: an addition or product with a number has no form here; expected two tensors")
    if kind is Concat:
        inputs = tuple(node.args[0])  # type: ignore[arg-type]
    return Step(name, kind, tuple(steps[i] for i in inputs), _shape(node), attributes, module)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def _of_module(module: nn.Module, name: str) -> tuple[type[Operation], dict[str, Any]]:
    for known, kind, read in MODULES:
        if isinstance(module, known):
            try:
                return kind, read(module)
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from None
    raise ValueError(f"{name}: {type(module).__name__} has no integer form")


def _of_call(node: fx.Node, name: str) -> tuple[type[Operation], dict[str, Any]]:
    table: dict[Any, Any] = METHODS if node.op == "call_method" else FUNCTIONS
    if node.op == "get_attr" or node.target not in table:
        what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", node.target)
        raise ValueError(
            f"{name}: the operation {what} has no integer form; known are convolutions and linear layers, batch "
            "norm, ReLU and clamps, max pooling, the mean and maximum of all positions, additions, flattening, "
            "concatenation, slicing with a step and padding"
            f"{': write torch.flatten(x, 1)' if what in ('size', 'view', 'reshape') else ''}"
        )
    if "out" in node.kwargs:
        raise ValueError(f"{name}: out= has no integer form; expected the result that the operation returns")
    kind, read = table[node.target]
    try:
        return kind, read(*node.args[1:], **node.kwargs)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    except TypeError as error:  # arguments that the reading does not know, or that are tensors
        raise ValueError(f"{name}: called so it has no integer form ({error})") from error
