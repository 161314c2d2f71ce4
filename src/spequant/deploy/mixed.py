"""Any prepared network as ONNX: linear layers, attention's products and embeddings on integers, all else in float.

For networks that `lower` refuses: attention, layer norm, GELU. Each matrix product is one of integers (MatMulInteger),
its sums exact; between them values are float, as torch exports them, and so are convolutions, on the values that codes
stand for (`integer_modules.Simulated`).
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spequant.calibration.batch_norm import modes_kept
from spequant.calibration.batches import cloned, run_model
from spequant.deploy import engines
from spequant.deploy.autocast import without_autocast
from spequant.deploy.draws import run_without_draws
from spequant.deploy.hooks import check_forwards, check_hooks, quantized_modules
from spequant.deploy.integer_modules import Codes, IntegerModule, integer_form, summands
from spequant.deploy.lower import check_dtype, on_no_integers
from spequant.deploy.onnx_export import Inputs, with_example
from spequant.deploy.onnx_file import Preprocessing, check_size, metadata, write_onnx
from spequant.deploy.onnx_versions import TRACED, declare_lowest
from spequant.deploy.parity import Batch, Parity
from spequant.extras import needs
from spequant.files import placed
from spequant.layers import QuantizedLayer, act_quantizers
from spequant.processes import innermost

MOVES = set(
    """
    _to_copy _unsafe_view alias cat chunk clone constant_pad_nd contiguous detach dropout expand flatten getitem im2col
    lift_fresh_copy movedim pad permute pixel_shuffle pixel_unshuffle reshape roll select slice split split_with_sizes
    squeeze stack sym_size t to transpose unbind unflatten unfold unsqueeze view
    """.split()  # noqa: SIM905
)
"""Operations of torch that put values elsewhere and compute none."""


@dataclass
class Mixed:
    """graph: the onnx model. integers: the layers and products on integers; islands: "module: operation", in float.

    saturating: layers whose sums some processors without VNNI clip. batch: None, any; or the one size it takes.
    inputs, outputs: their names.
    """

    graph: Any
    integers: list[str]
    islands: list[str]
    saturating: list[str]
    batch: int | None = None
    inputs: tuple[str, ...] = ("input",)
    outputs: tuple[str, ...] = ("output",)


@without_autocast
def export_mixed(
    model: nn.Module,
    path: str | Path,
    images: Inputs,
    *,
    preprocessing: Preprocessing | None = None,
    about: Mapping[str, Any] | None = None,
    check: Callable[[Parity], None] = lambda parity: None,
) -> tuple[Parity, Mixed]:
    """Write the prepared and calibrated `model` as ONNX with float islands, and hold onnxruntime's answers against its
    own. Arguments and errors as `export_onnx`'s; images may also be inputs by name, such as a tokenizer's."""
    model = innermost(model)
    one, batches = with_example(images, preprocessing)
    mixed = mixed_graph(model, one, preprocessing=preprocessing, about=about)
    with placed(Path(path)) as temporary:
        write_onnx(mixed.graph, temporary)
        parity = answers(model, mixed, engines.onnxruntime(temporary), batches)
        check(parity)
        parity.check("onnxruntime")
    return parity, mixed


@without_autocast
def mixed_graph(
    model: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    *,
    preprocessing: Preprocessing | None = None,
    about: Mapping[str, Any] | None = None,
) -> Mixed:
    """The onnx model of a prepared and calibrated `model` at the precision in use: "input" (batch, ...) -> "output"; of
    a network that takes keywords and returns tensors by name, as transformers' do, under these names.

    example: an input of the network, batch first, of which only the shape counts; or inputs by name, (batch, length)
    each, any number of both. preprocessing, about: as `integer_graph`'s.

    RuntimeError: not calibrated. ValueError: an activation quantizer that is no grid, a network that torch cannot
    export, that gives neither a tensor nor tensors by name, that computes nothing on integers or answers at random; a
    hook of a quantized layer; sums of products, at the example's length, that an int32 does not hold.
    ModuleNotFoundError: the extra `deploy` is missing.
    """
    needs("onnxscript", "deploy")
    check_dtype(model)
    for check in check_hooks, check_forwards:
        check(quantized_modules(model))  # all others run while torch traces
    with summands(model) as lengths:
        out = run_without_draws(model, example)  # what is wrong with the network itself, it says itself
    network = _copied(model)
    integer_form(network, lengths)
    check_size(sum(x.numel() * x.element_size() for x in (*network.parameters(), *network.buffers())))
    integers = {name: m for name, m in network.named_modules() if isinstance(m, IntegerModule)}
    places = network.named_modules(remove_duplicate=False)  # a module may stand in several
    known = {name for name, m in places if isinstance(m, IntegerModule | Codes)}
    if not known:
        raise on_no_integers(model)
    outputs = _output_names(out, ("input",) if isinstance(example, Tensor) else tuple(example))
    given, exported, batch = _traced(network, example, outputs, preprocessing)
    if not _reached(exported.exported_program.graph, known):
        raise on_no_integers(model)
    graph = declare_lowest(_named(exported.model_proto, batch))
    islands = _islands(exported.exported_program.graph, known)
    content = {"islands": islands, "batch": batch, "preprocessing": preprocessing, "about": dict(about or {})}
    needs("onnx", "deploy").helper.set_model_props(graph, metadata("mixed", content))
    clipped = [name for name, m in integers.items() if m.saturates]
    return Mixed(graph, list(integers), islands, clipped, batch, tuple(given), outputs)


def float_graph(network: nn.Module, example: Tensor | Mapping[str, Tensor]) -> Any:
    """The onnx model of a float `network`, in the form of `mixed_graph`'s: what that is timed against."""
    with modes_kept(network), torch.no_grad():
        inputs = ("input",) if isinstance(example, Tensor) else tuple(example)
        outputs = _output_names(run_model(network.eval(), cloned(example)), inputs)
        _, exported, batch = _traced(network, example, outputs, None)
    return _named(exported.model_proto, batch)


def _traced(
    network: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    outputs: tuple[str, ...],
    preprocessing: Preprocessing | None,
) -> tuple[dict[str, Tensor], Any, int | None]:
    """(inputs by name, what torch's exporter gives, None or the one size of a batch)."""
    if isinstance(example, Tensor):
        whole = _Whole(network, preprocessing)
        given = {"input": torch.zeros(2, *example.shape[1:], dtype=torch.uint8 if preprocessing else example.dtype)}
    else:
        whole = _Named(network, tuple(example))
        given = {name: x[:1].cpu().repeat(2, *[1] * (x.dim() - 1)) for name, x in example.items()}
    exported = _exported(whole, given, outputs)
    if _takes_any_number(exported.model_proto, given):
        return given, exported, None
    # The network itself counts with the batch's size.
    return given, _exported(whole, {name: x[:1] for name, x in given.items()}, outputs), 1


def _copied(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, at the precision in use: quantizers alone refuse to be copied with a draw."""
    quantizers = act_quantizers(model)
    levels = {name: q.levels for name, q in quantizers.items() if q.levels is not q.home_levels}
    try:
        for name in levels:
            quantizers[name].levels = quantizers[name].home_levels
        network = deepcopy(model).cpu().eval()
    finally:
        for name, number in levels.items():
            quantizers[name].levels = number
    for name, number in levels.items():
        act_quantizers(network)[name].levels = number.cpu()
    return network


def answers(model: nn.Module, mixed: Mixed, run: engines.Run, batches: Iterable[Batch]) -> Parity:
    """The logits of `model` and of an engine's `run` of its graph on the same images; of inputs by name, those of each
    output, padding (where attention_mask is 0) left out, and the network's own with other last bits."""
    parity = Parity(saturating=mixed.saturating)
    for x, given, labels in batches:
        with torch.no_grad(), modes_kept(model):
            out = run_model(model.eval(), cloned(x))
        if isinstance(given, np.ndarray) and isinstance(out, Tensor):
            parity.add(out, engines.run_in_parts(run, {"input": given}, mixed.batch)[0], labels)
            continue
        given = {"input": given} if isinstance(given, np.ndarray) else given
        with torch.no_grad(), modes_kept(model), other_last_bits(model.eval()):
            moved = run_model(model, cloned(x))
        if isinstance(out, Tensor):
            out, moved = {mixed.outputs[0]: out}, {mixed.outputs[0]: moved}
        for name, value in out.items():
            if value.dim() == 0:
                raise ValueError(
                    f"the network returns {name!r} without a batch, a loss; leave labels out of its inputs"
                )
        padding = given["attention_mask"] == 0 if "attention_mask" in given else None
        found = engines.run_in_parts(run, given, mixed.batch)
        for name, value, other, got in zip(mixed.outputs, out.values(), moved.values(), found, strict=True):
            unread = torch.from_numpy(padding) if padding is not None and padding.shape == got.shape else None
            parity.add(value, got, labels, other, output=name, padding=unread)
    return parity


@contextmanager
def other_last_bits(model: nn.Module) -> Iterator[None]:
    """Inside, what quantized layers return is off by up to 2^-21 of itself, as it may be in another engine, whose float
    parts round otherwise. Where a value lies near the middle of two codes that is one code, and more a layer on: of a
    deep network every engine gives somewhat other logits, and so does the network itself."""
    generator = torch.Generator().manual_seed(0)

    def moved(layer: nn.Module, inputs: Any, out: Tensor) -> Tensor:
        noise = torch.rand(out.shape, generator=generator).to(out.device, out.dtype)
        return out * (1 + (2 * noise - 1) * 2**-21)

    hooks = [m.register_forward_hook(moved) for m in model.modules() if isinstance(m, QuantizedLayer)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _output_names(out: Any, inputs: tuple[str, ...]) -> tuple[str, ...]:
    """Of the graph; one that an input has, too, with "_output" behind it."""
    if isinstance(out, Tensor):
        return ("output",) if "output" not in inputs else ("output_output",)
    if isinstance(out, Mapping) and out and all(isinstance(value, Tensor) for value in out.values()):
        return tuple(f"{name}_output" if name in inputs else str(name) for name in out)
    raise ValueError(f"the network gives {type(out).__name__}; expected one tensor, or tensors by name: wrap it")


class _Whole(nn.Module):
    """The network from its images, or its normalised input, to its output."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing | None):
        super().__init__()
        self.network = network
        self.normalises = preprocessing is not None
        if preprocessing is not None:
            for name, values in zip(("mean", "std"), preprocessing, strict=True):
                self.register_buffer(name, torch.tensor(values, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        return self.network((input.float() / 255 - self.mean) / self.std if self.normalises else input)


class _Named(nn.Module):
    """The network from the inputs of its keywords to its outputs, in their order."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        out = self.network(**dict(zip(self.names, inputs, strict=True)))
        return (out,) if isinstance(out, Tensor) else tuple(out.values())


def _exported(network: nn.Module, given: Mapping[str, Tensor], outputs: tuple[str, ...]) -> Any:
    """Any number of samples where `given` has several; and of tokens, the second dimension of inputs by name."""
    auto = torch.export.Dim.AUTO
    by_name = isinstance(network, _Named)
    free: list[dict[int, Any] | None] = [
        {d: auto for d in range(2 if by_name else 1) if d or len(x) > 1} for x in given.values()
    ]
    shapes = (tuple(free),) if by_name else tuple(free)
    try:
        # Only the plain form of attention has the strides that torch gives it when it takes it apart for ONNX.
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), _attention_of_four_dimensions():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                network,
                tuple(given.values()),
                dynamo=True,
                verbose=False,
                opset_version=TRACED,
                dynamic_shapes=shapes,
                input_names=list(given),
                output_names=list(outputs),
            )
    except Exception as error:
        why = error.__cause__ or error
        first = (str(why).strip() or type(why).__name__).splitlines()[0]
        raise ValueError(
            f"torch cannot export this network ({first}): its forward decides by the values of tensors, or by "
            "what torch.export does not follow; move that out of the network"
        ) from error


@contextmanager
def _attention_of_four_dimensions() -> Iterator[None]:
    """Inside, torch's attention has a dimension for its heads, and without a mask its leading dimensions as one: the
    exporter writes four, no more (Hiera, NesT, Twins) and no fewer."""
    own = F.scaled_dot_product_attention

    def flat(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *rest: Any, **options: Any) -> Tensor:
        if query.dim() == 3:  # of one head
            mask = attn_mask if attn_mask is None or attn_mask.dim() < 3 else attn_mask.unsqueeze(1)
            q, k, v = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
            return own(q, k, v, mask, *rest, **options).squeeze(1)
        if query.dim() <= 4 or attn_mask is not None:
            return own(query, key, value, attn_mask, *rest, **options)
        out = own(query.flatten(0, -4), key.flatten(0, -4), value.flatten(0, -4), None, *rest, **options)
        return out.reshape(*query.shape[:-1], out.shape[-1])

    F.scaled_dot_product_attention = flat
    try:
        yield
    finally:
        F.scaled_dot_product_attention = own


def _takes_any_number(graph: Any, given: Mapping[str, Tensor]) -> bool:
    """Whether the graph leaves the batch's size open, and runs with another one than the example's: some numbers that
    follow from it become constants unnoticed."""
    if not graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        return False
    three = {name: torch.cat([x, x[:1]]).numpy() for name, x in given.items()}
    try:
        out = engines.onnxruntime(graph.SerializeToString())(three)
    except Exception:  # onnxruntime's own
        return False
    return all(one.ndim and len(one) == 3 for one in out)


def _named(graph: Any, batch: int | None) -> Any:
    """The graph with the batch's size, where it is open, called "batch" at both ends, and without what torch notes of
    nodes: a third of a small file, and this machine's paths."""
    inner = graph.graph
    for end in (*inner.input, *inner.output):
        sizes = end.type.tensor_type.shape.dim
        if batch is None:
            sizes[0].dim_param = "batch"
        if len(sizes) == 2 and sizes[1].dim_param:
            sizes[1].dim_param = "length"
    for part in (graph, inner, *inner.node, *inner.initializer, *inner.input, *inner.output, *inner.value_info):
        part.ClearField("metadata_props")
        part.ClearField("doc_string")
    inner.ClearField("value_info")
    inner.name = graph.producer_name = "spequant"
    graph.ClearField("producer_version")
    return graph


def _module(node: Any) -> str:
    """The name of the network's module that a node of the exported graph is in, "" the network."""
    stack = [path for path, _ in (node.meta.get("nn_module_stack") or {}).values()]
    return stack[-1].removeprefix("network").removeprefix(".") if stack else ""


def _inside(name: str, known: set[str]) -> bool:
    return any(name == i or name.startswith(f"{i}.") for i in known)


def _reached(graph: Any, known: set[str]) -> bool:
    """Whether an output of the exported graph depends on one of the modules that compute on codes."""
    open_ = seen = set(graph.output_node().all_input_nodes)
    while open_:
        open_ = {i for node in open_ for i in node.all_input_nodes} - seen
        seen = seen | open_
    return any(node.op == "call_function" and _inside(_module(node), known) for node in seen)


def _islands(graph: Any, known: set[str]) -> list[str]:
    """ "module: operation" of what the exported graph computes in float, each once, in its order. known: modules that
    compute on codes."""
    found = []
    for node in graph.nodes:
        if node.op != "call_function" or "onnx_symbolic" in str(node.target):
            continue
        name = _module(node)
        kind = getattr(node.target, "__name__", str(node.target)).removeprefix("aten.").partition(".")[0]
        kind = "batch_norm" if "batch_norm" in kind else kind
        if kind in MOVES or kind.startswith("sym_") or _inside(name, known):
            continue
        found.append(f"{name or 'network'}: {kind}")
    return list(dict.fromkeys(found))
