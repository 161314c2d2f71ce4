"""From a prepared network to a `Program`: traced once, then read backwards from its output.

Where a quantizer reads a tensor, its grid is carried back through everything that commutes with rounding (ReLU and
other clamps, max pooling, flattening, concatenation, slicing and padding with zeros) to where the numbers arise: there
the sums of a layer, or of an addition, are rounded to that grid at once. A tensor that two quantizers read arises
twice. So the integers are those of the fake-quantized network, and nothing is rounded twice.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spequant.calibration.batch_norm import PLAIN, modes_kept
from spequant.deploy.autocast import without_autocast
from spequant.deploy.draws import run_without_draws
from spequant.deploy.grids import act_grid, weight_grid
from spequant.deploy.hooks import check_forwards, check_hooks
from spequant.deploy.program import Add, Float, Grid, Input, MaxPool, Move, Op, Program, Quantize, Weighted
from spequant.deploy.reading import Step, read_step
from spequant.deploy.writes import WritingProxy, propagate
from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer, effective_weight
from spequant.networks import QUANTIZABLE
from spequant.preparation.tracing import defaults_of, shapes_unchecked
from spequant.quantizers import Quantizer

IMAGES = ("max_pool", "mean", "amax", "stride", "pad")
"""Kinds of steps that are read for (batch, channels, height, width) alone."""


class _Tracer(fx.Tracer):
    """Sees quantizers of outputs, and the activation that timm's batch norm has inside, as steps of their own; and
    x += h as written in place, where fx would write x = x + h."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return WritingProxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kept = isinstance(m, (QuantizedLayer, QuantizedAdd, Quantizer, *QUANTIZABLE))
        known = isinstance(m, _BatchNorm) and (type(m).forward in PLAIN or hasattr(m, "act"))
        return kept or known or super().is_leaf_module(m, module_qualified_name)

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        out = super().call_module(m, forward, args, kwargs)
        if not self.is_leaf_module(m, name := self.path_of_module(m)):
            return out
        if isinstance(m, _BatchNorm) and hasattr(m, "act"):
            own: Any = m
            out = own.act(own.drop(out))
        return self.create_proxy("call_module", f"{name}.{OUTPUT}", (out,), {}) if OUTPUT in m._modules else out


@without_autocast
def lower(model: nn.Module, example: Tensor) -> Program:
    """The integer program of a prepared and calibrated `model` at the precision in use.

    example: an input, batch first; only its shape counts.

    RuntimeError: not calibrated. ValueError names what has no integer form: control flow that cannot be traced, an
    operation that is not known, a layer without a weight quantizer behind quantized activations, an activation
    quantizer that is no grid, a hook, random numbers in eval mode, a view of a tensor that is written to in place; a
    network no layer of which computes on integers.
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
    return _Lowering(model, graph).program()


def check_dtype(model: nn.Module) -> None:
    """ValueError: parameters that are not fp32."""
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise ValueError(f"{name} is {parameter.dtype}; expected torch.float32: call model.float() before")


def on_no_integers(model: nn.Module) -> ValueError:
    """What to raise where nothing that the answer of `model` depends on computes on integers."""
    name, layers = type(model).__name__, sum(isinstance(m, QuantizedLayer) for m in model.modules())
    if not layers:
        return ValueError(f"{name} is a float network: no layer of it is quantized; call spequant.prepare before")
    return ValueError(
        f"{name} computes nothing on integers, though {layers} of its layers are quantized: that takes a layer whose "
        "weight and input both are, prepare(weight=..., act=...), and on which the output depends"
    )


def _needed(out: fx.Node) -> set[fx.Node]:
    """`out` and the nodes that it depends on."""
    needed, open_ = {out}, [out]
    while open_:
        new = set(open_.pop().all_input_nodes) - needed
        needed |= new
        open_ += new
    return needed


class _Lowering:
    def __init__(self, model: nn.Module, graph: fx.Graph):
        self.model = model
        self.ops: list[Op] = []
        self.done: dict[Any, Op] = {}
        (out,) = next(node for node in graph.nodes if node.op == "output").args
        if not isinstance(out, fx.Node):
            raise ValueError(f"the network gives {type(out).__name__}; expected one tensor: wrap it")
        self.out = out
        needed = _needed(out)
        self.steps = {node: read_step(node, model) for node in graph.nodes if node in needed}
        for step in self.steps.values():
            if step.kind in IMAGES and len(shape_of(step.inputs[0])) != 4:
                raise ValueError(
                    f"{step.name}: {step.kind} on {len(shape_of(step.inputs[0]))} dimensions has no form here; "
                    "expected 4, (batch, channels, height, width)"
                )
        inputs = [node for node in self.steps if node.op == "placeholder"]
        if len(inputs) != 1:
            raise ValueError(f"the network reads {len(inputs)} inputs; expected one tensor")
        self.value(inputs[0])

    def program(self) -> Program:
        for step in self.steps.values():  # in order, so that no read goes back farther than to the quantizers before it
            for source, quantizer in self._quantized_inputs(step):
                self.codes(source, act_grid(quantizer))
        output = self.value(self.out)
        if not any(isinstance(op, Weighted | Add) for op in self.ops):
            raise on_no_integers(self.model)
        return Program(self.ops, output)

    def _quantized_inputs(self, step: Step) -> list[tuple[fx.Node, Quantizer]]:
        """What `step` reads as codes: (node, quantizer)."""
        module = step.module
        if isinstance(module, QuantizedAdd):
            return list(zip(step.inputs, (module.branch_quantizer, module.shortcut_quantizer), strict=True))
        if isinstance(module, QuantizedLayer) and module.weight_quantizer and module.act_quantizer:
            return [(step.inputs[0], module.act_quantizer)]
        return []

    def _add(self, op: Op) -> Op:
        self.ops.append(op)
        return op

    def value(self, node: fx.Node) -> Op:
        """`node` in float; of a quantizer, its codes."""
        if node not in self.done:
            grid = self._own_grid(node)
            self.done[node] = self._arise(node, None) or self._island(node) if grid is None else self.codes(node, grid)
        return self.done[node]

    def _own_grid(self, node: fx.Node) -> Grid | None:
        """The grid that a quantizer of its own has put `node` on."""
        step = self.steps[node]
        if step.kind == "same":
            return self._own_grid(step.inputs[0])
        return act_grid(step.module) if isinstance(step.module, Quantizer) else None

    def codes(self, node: fx.Node, grid: Grid) -> Op:
        """`node` on `grid`."""
        key = node, grid
        if key not in self.done:
            self.done[key] = self._carried(node, grid) or self._arise(node, grid) or self._quantize(node, grid)
        return self.done[key]

    def _quantize(self, node: fx.Node, grid: Grid) -> Op:
        return self._add(Quantize(self.steps[node].name, (self.value(node),), grid, shape_of(node)))

    def _carried(self, node: fx.Node, grid: Grid) -> Op | None:
        """`node` on `grid` by its inputs on that grid, where it commutes with rounding."""
        step, shape = self.steps[node], shape_of(node)
        if step.kind == "same" or (step.kind == "requantize" and self._own_grid(node) == grid):
            return self.codes(step.inputs[0], grid)
        if step.kind == "clamp":
            return self.codes(step.inputs[0], grid.clamped(**step.attributes))
        if step.kind == "max_pool":
            return self._add(MaxPool(step.name, (self.codes(step.inputs[0], grid),), grid, shape, **step.attributes))
        if step.kind in ("flatten", "concat", "amax"):
            inputs = tuple(self.codes(i, grid) for i in step.inputs)
            return self._add(Move(step.name, inputs, grid, shape, step.kind, **step.attributes))
        if step.kind in ("stride", "pad"):
            return self._spread(node, grid)
        return None

    def _spread(self, node: fx.Node, grid: Grid) -> Op:
        """Strided slicing and zero channels on both sides, as a 1 x 1 convolution with the codes 0 and 1."""
        before, after, stride, source, step = 0, 0, (1, 1), node, self.steps[node]
        if step.kind == "pad":
            before, after = step.attributes["channels"]
            source = step.inputs[0]
        if self.steps[source].kind == "stride":
            stride = self.steps[source].attributes["stride"]
            source = self.steps[source].inputs[0]
        inside = self.codes(source, grid)
        channels = shape_of(source)[1]
        eye = torch.eye(channels, dtype=torch.int16)
        weight = torch.cat([eye.new_zeros(before, channels), eye, eye.new_zeros(after, channels)])
        outputs = len(weight)
        return self._add(
            Weighted(
                step.name,
                (inside,),
                grid,
                shape_of(node),
                weight[:, :, None, None],
                torch.ones(outputs, dtype=torch.float64),
                torch.zeros(outputs, dtype=torch.float64),
                stride=stride,
                padding=(0, 0),
                dilation=(1, 1),
            )
        )

    def _arise(self, node: fx.Node, grid: Grid | None) -> Op | None:
        """`node` on `grid`, or in float, where it is a sum of products or of addends that are codes themselves."""
        step = self.steps[node]
        if step.kind == "batch_norm" and self.steps[step.inputs[0]].kind == "layer":
            inner = self.steps[step.inputs[0]]
            return self._weighted(inner, step.module, grid, shape_of(node))
        if step.kind == "layer":
            return self._weighted(step, None, grid, shape_of(node))
        if step.kind == "quantized_add":
            inputs = tuple(self.codes(i, act_grid(q)) for i, q in self._quantized_inputs(step))
            return self._add(Add(step.name, inputs, grid, shape_of(node)))
        if step.kind == "add" and all(self._own_grid(i) is not None for i in step.inputs):
            return self._add(Add(step.name, tuple(self.value(i) for i in step.inputs), grid, shape_of(node)))
        return None

    def _weighted(self, step: Step, norm: nn.Module | None, grid: Grid | None, shape: tuple[int, ...]) -> Op | None:
        module = step.module
        if not isinstance(module, QuantizedLayer) or module.weight_quantizer is None or module.act_quantizer is None:
            return None  # float, or with one side float: an island
        layer: Any = module.layer
        if isinstance(layer, nn.Linear) and len(shape_of(step.inputs[0])) != 2:
            raise ValueError(
                f"{step.name}: a linear layer on inputs of {len(shape_of(step.inputs[0]))} dimensions has no integer "
                "form here; expected (batch, features): flatten before it"
            )
        inside = self.codes(step.inputs[0], act_grid(module.act_quantizer))
        codes, scale = weight_grid(module)
        offset = torch.zeros(len(codes)) if layer.bias is None else layer.bias.detach().cpu()
        factor, shift = norm_affine(norm) if norm is not None else (1.0, 0.0)
        return self._add(
            Weighted(
                step.name,
                (inside,),
                grid,
                shape,
                codes,
                scale * factor,
                offset.double() * factor + shift,
                bias=layer.bias if norm is None else norm.bias,  # type: ignore[arg-type]
                **step.attributes,
            )
        )

    def _island(self, node: fx.Node) -> Op:
        """`node` in float, from float."""
        step, shape = self.steps[node], shape_of(node)
        if step.kind == "input":
            return self._add(Input(step.name, (), None, shape))
        if step.kind == "same":
            return self.value(step.inputs[0])
        made = ISLANDS.get(step.kind)
        if made is None:
            raise ValueError(f"{step.name}: {step.kind} has no integer form here, and no float one; it is not exported")
        kind, attributes, tensors = made(step)
        inputs = tuple(self.value(i) for i in step.inputs)
        return self._add(Float(step.name, inputs, None, shape, kind, attributes, tensors))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["tensor_meta"].shape)


def norm_affine(norm: nn.Module) -> tuple[Tensor, Tensor]:
    """(factor, shift), float64 a channel: batch norm on its running statistics is x * factor + shift."""
    n: Any = norm
    if n.running_var is None:
        raise ValueError(f"{norm!r} keeps no running statistics; it has no form outside its batch")
    deviation = torch.sqrt(n.running_var.double() + n.eps)
    factor = (n.weight.detach().double() if n.affine else torch.ones_like(deviation)) / deviation
    shift = (n.bias.detach().double() if n.affine else 0.0) - n.running_mean.double() * factor
    return factor.cpu(), shift.cpu()


def _float_layer(step: Step) -> tuple[str, dict[str, Any], tuple[Tensor, ...]]:
    """A layer whose weight or input is float: weights as they are used, float arithmetic."""
    module: Any = step.module
    layer, quantizer = module, None
    if isinstance(module, QuantizedLayer):
        if module.act_quantizer is not None:
            raise ValueError(
                f"{step.name}: activations are quantized and weights are float, which has no integer form; prepare "
                "with weight= as well, or with act=None"
            )
        layer, quantizer = module.layer, module.weight_quantizer
    own: Any = layer
    with torch.no_grad():
        weight = effective_weight(own) if quantizer is None else quantizer(effective_weight(own))
    bias = torch.zeros(len(weight)) if own.bias is None else own.bias
    return "layer", dict(step.attributes), (weight.detach().cpu(), bias.detach().cpu())


def _affine(step: Step) -> tuple[str, dict[str, Any], tuple[Tensor, ...]]:
    assert step.module is not None
    return "affine", {}, tuple(t.float() for t in norm_affine(step.module))


def _plain(kind: str) -> Callable[[Step], tuple[str, dict[str, Any], tuple[Tensor, ...]]]:
    return lambda step: (kind, dict(step.attributes), ())


ISLANDS: dict[str, Callable[[Step], tuple[str, dict[str, Any], tuple[Tensor, ...]]]] = {
    "layer": _float_layer,
    "batch_norm": _affine,
    **{k: _plain(k) for k in ("add", "mul", "clamp", "mean", "amax", "max_pool", "flatten", "concat", "sigmoid")},
}
"""What may run in float between integers: kind -> what `Float` needs of it."""
