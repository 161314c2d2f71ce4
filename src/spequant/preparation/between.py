"""What stands between the layers of a network: which tensors have to be on a grid for integers throughout.

A layer reads codes: its input is quantized. Other steps read what a layer, or another step, gives in float. They have
an integer form where that is quantized, too: a function of one tensor (SiLU after batch norm) is a table of its codes,
a product of two (squeeze and excitation) one of codes, a mean an exact sum, batch norm behind a concatenation a layer.
"""

from collections.abc import Iterator, Set
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm

from spequant.networks import QUANTIZABLE, copied
from spequant.preparation.additions import activations_of
from spequant.preparation.tracing import DROPOUT_NAMES, Tracer, traced

CURVE_FUNCTIONS = (
    *(nn.CELU, nn.ELU, nn.GELU, nn.Hardsigmoid, nn.Hardswish, nn.LeakyReLU, nn.LogSigmoid, nn.Mish, nn.PReLU),
    *(nn.SELU, nn.SiLU, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh),
)
CURVE_NAMES = {
    *("abs", "celu", "elu", "exp", "gelu", "hardsigmoid", "hardswish", "leaky_relu", "log_sigmoid", "logsigmoid"),
    *("mish", "pow", "prelu", "selu", "sigmoid", "silu", "softplus", "softsign", "sqrt", "square", "tanh"),
}
"""Functions of single numbers, as modules, and by the names of functions and methods (in place: with _ behind)."""
CLAMPS = (nn.ReLU, nn.Hardtanh)
CLAMP_NAMES = {"clamp", "clamp_max", "clamp_min", "clip", "hardtanh", "relu", "relu6"}
ARITHMETIC_NAMES = {"add", "div", "iadd", "imul", "isub", "itruediv", "mul", "neg", "sub", "truediv"}
SUMS = {"add", "iadd"}
PRODUCT_FUNCTIONS = {"div", "imul", "isub", "itruediv", "mul", "sub", "truediv"}
"""Of two tensors, that need both on grids."""
MEANS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
MEAN_NAMES = {"mean", *(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))}
NEAREST = ("nearest", "nearest-exact")
CONCATENATIONS = {"cat", "concat", "concatenate", "stack"}
MOVE_FUNCTIONS = (
    *(nn.Identity, nn.Flatten, nn.Unflatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Upsample),
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d, nn.ReflectionPad1d, nn.ReflectionPad2d),
    *(nn.ReflectionPad3d, nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)
SAME_NAMES = {
    *("clone", "contiguous", "detach", "dropout", "dropout1d", "dropout2d", "dropout3d", "float", "stochastic_depth"),
    *("to", "type_as"),
}
"""What leaves numbers as they are, and where they are."""
MOVE_NAMES = {
    *SAME_NAMES,
    *("amax", "broadcast_to", "channel_shuffle", "chunk", "expand", "expand_as", "flatten", "flip"),
    *("getitem", "hstack", "index_select", "interpolate"),
    *(f"{kind}max_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3)),
    *("max", "maximum", "moveaxis", "movedim", "narrow", "pad", "permute", "pixel_shuffle", "pixel_unshuffle"),
    *("repeat", "repeat_interleave", "reshape", "reshape_as", "roll", "select", "split", "split_with_sizes"),
    *("squeeze", "swapaxes", "swapdims", "tensor_split", "tile", "transpose"),
    *("unbind", "unflatten", "unsqueeze", "view", "view_as"),
}
"""What puts numbers elsewhere, or takes the largest, and leaves a grid what it is."""
LIKE_ANOTHER = {"expand_as", "reshape_as", "to", "type_as", "view_as"}
"""Of these, that read of a second tensor its shape or type, not its numbers."""


def groups_between(model: nn.Module) -> list[list[str]]:
    """Find what has to be quantized so that nothing between the layers of `model` is left float.

    Args:
        model: A float network; it is copied before it is traced.

    Returns:
        Groups of names of modules whose outputs get one quantizer for each group: tensors that are concatenated share
        one. What no module that runs once gives is left out.

    Raises:
        ValueError: `model` cannot be traced.
    """
    if Tracer().is_leaf_module(model, ""):
        return []
    network = copied(model).eval()
    tracer, graph = traced(network)
    return _Between(network, tracer, graph).groups


class _Between:
    """groups: names of the modules found so far; wanted: nodes that are on a grid then."""

    def __init__(self, network: nn.Module, tracer: Tracer, graph: fx.Graph):
        self.network, self.tracer = network, tracer
        self.groups: list[list[str]] = []
        self.wanted: set[fx.Node] = set()
        self.activations = activations_of(graph)
        for node in graph.nodes:
            for source in dict.fromkeys(self._read(node)):
                self._want(source)
            if (name := self._inside(node)) is not None:
                self.groups.append([name])

    def _read(self, node: fx.Node) -> Iterator[fx.Node]:
        """What `node` has to find on a grid."""
        inputs = self._inputs(node)
        if node.op == "output":
            yield from (s for s in self._sources(node) if self._is(s, CURVE_FUNCTIONS, CURVE_NAMES))
        elif not inputs:
            return
        elif self._is(node, (), SUMS) and len(inputs) == 2:
            if any(self.tracer.maker(i) is None for i in inputs):  # else `residual` has them
                yield from inputs
        elif self._is(node, (), PRODUCT_FUNCTIONS) and len(inputs) == 2:
            roots = {root for i in inputs for root in self._roots(i)}
            yield from roots if len(roots) == 1 else inputs
        elif self._is_affine(node):
            if not self._is_layer(inputs[0], (_BatchNorm,), {"batch_norm"} | ARITHMETIC_NAMES):
                yield inputs[0]
        elif self._is(node, CURVE_FUNCTIONS, CURVE_NAMES) or (len(inputs) == 1 and self._squares(node)):
            roots = self._roots(inputs[0])
            yield from roots if len(roots) == 1 else inputs[:1]
        elif self._is(node, MEANS, MEAN_NAMES) or self._blends(node):
            yield inputs[0]
        elif self._is(node, (_BatchNorm,), {"batch_norm"}):
            if not self._is_layer(inputs[0]):
                yield inputs[0]
        elif self._is(node, (), CONCATENATIONS) and any(self._is(s, (), CONCATENATIONS) for s in self._sources(node)):
            yield node

    def _inside(self, node: fx.Node) -> str | None:
        """The module between timm's batch norm behind a layer and the activation that it has inside, a function of what
        has to be on a grid."""
        if node.op != "call_module" or self.tracer.calls[str(node.target)] != 1:
            return None
        module: Any = self.network.get_submodule(str(node.target))
        if not isinstance(module, _BatchNorm) or not self._is_layer(self._inputs(node)[0]):
            return None
        return (
            None
            if isinstance(getattr(module, "act", None), (*CLAMPS, nn.Identity, type(None)))
            else f"{node.target}.drop"
        )

    def _inputs(self, node: fx.Node) -> list[fx.Node]:
        """The activations that `node` reads the numbers of."""
        nodes = node.args[:1] if self._is(node, (), LIKE_ANOTHER) else node.all_input_nodes
        return [i for i in nodes if isinstance(i, fx.Node) and i in self.activations]

    def _is_affine(self, node: fx.Node) -> bool:
        """Whether `node` is a tensor plus or times a constant, or twice a tensor."""
        return self._is(node, (), ARITHMETIC_NAMES) and len(self._inputs(node)) == 1 and not self._squares(node)

    def _squares(self, node: fx.Node) -> bool:
        """Whether `node` is a tensor times, or by, itself."""
        return self._is(node, (), PRODUCT_FUNCTIONS) and sum(arg in self.activations for arg in node.args) == 2

    def _is(self, node: fx.Node, modules: tuple[type, ...], names: Set[str]) -> bool:
        if node.op == "call_module":
            return isinstance(self.network.get_submodule(str(node.target)), modules) if modules else False
        if node.op not in ("call_function", "call_method"):
            return False
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
        return str(name).rstrip("_") in names

    def _is_layer(self, node: fx.Node, modules: tuple[type, ...] = (), names: Set[str] = frozenset()) -> bool:
        """Whether `node` is the result of a layer; through others, `modules` or functions called `names`."""
        same = (nn.Identity, *modules), SAME_NAMES | names
        while (self._is(node, *same) or self._drops(node)) and len(self._inputs(node)) == 1:
            node = self._inputs(node)[0]
        return self._is(node, QUANTIZABLE, set())

    def _drops(self, node: fx.Node) -> bool:
        return node.op == "call_module" and type(self.network.get_submodule(str(node.target))).__name__ in DROPOUT_NAMES

    def _blends(self, node: fx.Node) -> bool:
        """Whether `node` resizes by means or lines between pixels."""
        if node.op == "call_module":
            module: Any = self.network.get_submodule(str(node.target))
            return isinstance(module, nn.Upsample) and module.mode not in NEAREST
        mode = node.kwargs.get("mode", node.args[3] if len(node.args) > 3 else NEAREST[0])
        return self._is(node, (), {"interpolate"}) and mode not in NEAREST

    def _moves(self, node: fx.Node) -> bool:
        if self._blends(node):
            return False
        return self._is(node, MOVE_FUNCTIONS, MOVE_NAMES | CONCATENATIONS) or self._drops(node)

    def _pointwise(self, node: fx.Node) -> bool:
        return self._is(node, (*CURVE_FUNCTIONS, *CLAMPS), CURVE_NAMES | CLAMP_NAMES | ARITHMETIC_NAMES)

    def _is_same(self, node: fx.Node) -> bool:
        return self._is(node, (nn.Identity,), SAME_NAMES) or self._drops(node)

    def _roots(self, node: fx.Node) -> set[fx.Node]:
        """The nodes that `node` is a function of, number by number; itself, if it is on a grid or nothing such."""
        roots, ahead = set(), [node]
        while ahead:
            one = ahead.pop()
            if one in self.wanted or not (self._pointwise(one) or self._is_same(one)):
                roots.add(one)
            else:
                ahead += self._inputs(one)
        return roots

    def _sources(self, node: fx.Node) -> list[fx.Node]:
        """Those that `node` puts elsewhere, through other such nodes but concatenations behind it."""
        sources, ahead, seen = [], self._inputs(node), set()
        while ahead:
            one = ahead.pop()
            if one in seen:
                continue
            seen.add(one)
            if self._moves(one) and not self._is(one, (), CONCATENATIONS):
                ahead += self._inputs(one)
            else:
                sources.append(one)
        return sources

    def _want(self, node: fx.Node) -> None:
        """Have `node` on one grid: all that it is put together of."""
        makers: list[str] = []
        ahead, seen = [node], set()
        while ahead:
            one = ahead.pop(0)
            if one in seen:
                continue
            seen.add(one)
            joins = self._is(one, (), CONCATENATIONS)
            name = None if joins and self._all_made(one) else self.tracer.maker(one)
            if self._moves(one) and not (name if joins else self._makes(one, name)):
                ahead += self._inputs(one)
            elif name is not None:
                makers.append(name)
            elif self._is(one, CLAMPS, CLAMP_NAMES) or self._is_affine(one):
                ahead += self._inputs(one)
        self.wanted |= seen
        if makers:
            together = [g for g in self.groups if not set(g).isdisjoint(makers)]
            self.groups = [g for g in self.groups if g not in together]
            self.groups.append(list(dict.fromkeys([name for g in together for name in g] + makers)))

    def _makes(self, node: fx.Node, name: str | None) -> bool:
        """Whether the move `node` has to be quantized itself: what it moves no module makes."""
        return name is not None and not any(
            self.tracer.maker(i) or self._moves(i) or self._is(i, CLAMPS, CLAMP_NAMES) for i in self._inputs(node)
        )

    def _all_made(self, node: fx.Node) -> bool:
        """Whether modules make all that the concatenation `node` puts together: no sum, say, that none gives."""
        return all(
            self.tracer.maker(one) or self._is(one, CLAMPS, {*CLAMP_NAMES, *CONCATENATIONS}) or self._is_affine(one)
            for one in self._sources(node)
        )
