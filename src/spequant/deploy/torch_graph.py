"""Any network as ONNX by torch's own exporter: any number of samples, inputs and outputs by name."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from spequant.calibration.batches import cloned, modes_kept, run_model
from spequant.deploy import engines
from spequant.deploy.loaded import Preprocessing
from spequant.deploy.onnx_versions import TRACED
from spequant.deploy.outputs import output_names, outputs_by_name

MOVE_KINDS = set(
    """
    _to_copy _unsafe_view alias cat chunk clone constant_pad_nd contiguous detach dropout expand flatten getitem im2col
    lift_fresh_copy movedim pad permute pixel_shuffle pixel_unshuffle reshape roll select slice split split_with_sizes
    squeeze stack sym_size t to transpose unbind unflatten unfold unsqueeze view
    """.split()  # noqa: SIM905
)
"""Operations of torch that put values elsewhere and compute none."""


@dataclass
class Traced:
    """graph: the onnx model. nodes: the exported graph in torch's operations. inputs, outputs: their names. batch:
    None, any; or the one size it takes."""

    graph: Any
    nodes: Any
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    batch: int | None


def float_graph(network: nn.Module, example: Tensor | Mapping[str, Tensor]) -> Any:
    """The onnx model of a float `network`, in the form of `mixed_graph`'s: what that is timed against."""
    with modes_kept(network), torch.no_grad():
        return exported_program(network, example, run_model(network.eval(), cloned(example))).graph


def exported_program(
    network: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    out: Any,
    preprocessing: Preprocessing | None = None,
) -> Traced:
    """`network` as ONNX. out: what it gives for `example`. ValueError: what torch cannot export, or other outputs than
    tensors."""
    outputs = output_names(out, ("input",) if isinstance(example, Tensor) else tuple(example))
    if isinstance(example, Tensor):
        network = _Whole(network, preprocessing)
        inputs = {"input": torch.zeros(2, *example.shape[1:], dtype=torch.uint8 if preprocessing else example.dtype)}
    else:
        network = _Named(network, tuple(example))
        inputs = {name: x[:1].cpu().repeat(2, *[1] * (x.dim() - 1)) for name, x in example.items()}
    exported, batch = _exported(network, inputs, outputs), None
    if not _takes_any_number(exported.model_proto, inputs):  # the network itself counts with the batch's size
        exported, batch = _exported(network, {name: x[:1] for name, x in inputs.items()}, outputs), 1
    graph = _named(exported.model_proto, batch)
    return Traced(graph, exported.exported_program.graph, tuple(inputs), outputs, batch)


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

    def forward(self, input: Tensor) -> tuple[Tensor, ...]:
        out = self.network((input.float() / 255 - self.mean) / self.std if self.normalises else input)
        return tuple(outputs_by_name(out).values())


class _Named(nn.Module):
    """The network from the inputs of its keywords to its outputs, in their order."""

    def __init__(self, network: nn.Module, names: tuple[str, ...]):
        super().__init__()
        self.network, self.names = network, names

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(outputs_by_name(self.network(**dict(zip(self.names, inputs, strict=True)))).values())


def _exported(network: nn.Module, inputs: Mapping[str, Tensor], outputs: tuple[str, ...]) -> Any:
    """Any number of samples where `inputs` has several; and of tokens, the second dimension of inputs by name."""
    auto = torch.export.Dim.AUTO
    by_name = isinstance(network, _Named)
    free: list[dict[int, Any] | None] = [
        {d: auto for d in range(2 if by_name else 1) if d or len(x) > 1} for x in inputs.values()
    ]
    shapes = (tuple(free),) if by_name else tuple(free)
    try:
        # Only the plain form of attention has the strides that torch gives it when it takes it apart for ONNX.
        with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH), _attention_of_four_dimensions():
            warnings.simplefilter("ignore")
            return torch.onnx.export(
                network,
                tuple(inputs.values()),
                dynamo=True,
                verbose=False,
                opset_version=TRACED,
                dynamic_shapes=shapes,
                input_names=list(inputs),
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
    attention = F.scaled_dot_product_attention

    def flat(query: Tensor, key: Tensor, value: Tensor, attn_mask: Any = None, *rest: Any, **options: Any) -> Tensor:
        if query.dim() == 3:  # of one head
            mask = attn_mask if attn_mask is None or attn_mask.dim() < 3 else attn_mask.unsqueeze(1)
            q, k, v = query.unsqueeze(1), key.unsqueeze(1), value.unsqueeze(1)
            return attention(q, k, v, mask, *rest, **options).squeeze(1)
        if query.dim() <= 4 or attn_mask is not None:
            return attention(query, key, value, attn_mask, *rest, **options)
        out = attention(query.flatten(0, -4), key.flatten(0, -4), value.flatten(0, -4), None, *rest, **options)
        return out.reshape(*query.shape[:-1], out.shape[-1])

    F.scaled_dot_product_attention = flat
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attention


def _takes_any_number(graph: Any, inputs: Mapping[str, Tensor]) -> bool:
    """Whether the graph leaves the batch's size open, and runs with another one than the example's: some numbers that
    follow from it become constants unnoticed."""
    if not graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param:
        return False
    three = {name: torch.cat([x, x[:1]]).numpy() for name, x in inputs.items()}
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


def _inside(name: str, modules: set[str]) -> bool:
    return any(name == i or name.startswith(f"{i}.") for i in modules)


def reached(graph: Any, modules: set[str]) -> bool:
    """Whether an output of the exported graph depends on one of the modules that compute on codes."""
    ahead = seen = set(graph.output_node().all_input_nodes)
    while ahead:
        ahead = {i for node in ahead for i in node.all_input_nodes} - seen
        seen = seen | ahead
    return any(node.op == "call_function" and _inside(_module(node), modules) for node in seen)


def islands_of(graph: Any, modules: set[str]) -> list[str]:
    """ "module: operation" of what the exported graph computes in float, each once, in its order. modules: those that
    compute on codes."""
    islands = []
    for node in graph.nodes:
        if node.op != "call_function" or "onnx_symbolic" in str(node.target):
            continue
        name = _module(node)
        kind = getattr(node.target, "__name__", str(node.target)).removeprefix("aten.").partition(".")[0]
        kind = "batch_norm" if "batch_norm" in kind else kind
        if kind in MOVE_KINDS or kind.startswith("sym_") or _inside(name, modules):
            continue
        islands.append(f"{name or 'network'}: {kind}")
    return list(dict.fromkeys(islands))
