"""Any prepared network as ONNX: linear layers, attention's products and embeddings on integers, all else in float.

For networks that `lower` refuses: attention, layer norm, GELU. Each matrix product is one of integers (MatMulInteger),
its sums exact; between them values are float, as torch exports them, and so are convolutions, on the values that codes
stand for (`integer_modules.Simulated`).
"""

from collections.abc import Iterable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spequant.calibration.batches import answer
from spequant.deploy import engines
from spequant.deploy.checks import check_dtype, check_forwards, check_hooks, on_no_integers, quantized_modules
from spequant.deploy.draws import run_without_draws
from spequant.deploy.formats.format import Draft, Format
from spequant.deploy.integer_modules import CodesOf, IntegerModule, integer_form, summands
from spequant.deploy.last_bits import other_last_bits
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.onnx_file import check_size, loaded_onnx, metadata, numbers_in, read_onnx, write_onnx
from spequant.deploy.onnx_versions import declare_lowest
from spequant.deploy.outputs import outputs_by_name
from spequant.deploy.parity import Parity, ParityBatch
from spequant.deploy.torch_graph import exported_program, islands_of, reached
from spequant.extras import needs
from spequant.functional import without_autocast
from spequant.layers import act_quantizers


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
def mixed_graph(
    model: nn.Module,
    example: Tensor | Mapping[str, Tensor],
    *,
    preprocessing: Preprocessing | None = None,
    about: Mapping[str, Any] | None = None,
) -> Mixed:
    """The onnx model of a prepared and calibrated `model` at the precision in use: "input" (batch, ...) -> "output"; of
    a network that takes keywords and returns tensors by name, as transformers' do, under these names.

    Args:
        model: the network; it stays as it is.
        example: an input of the network, batch first, of which only the shape counts; or inputs by name, (batch,
            length) each, any number of both.
        preprocessing: as `integer_graph`'s.
        about: JSON to keep in the graph.

    Raises:
        RuntimeError: not calibrated.
        ValueError: an activation quantizer that is no grid, a network that torch cannot export, that gives neither a
            tensor nor tensors by name, that computes nothing on integers or answers at random; a hook of a quantized
            layer; sums of products, at the example's length, that an int32 does not hold.
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
    on_codes = {name for name, m in places if isinstance(m, IntegerModule | CodesOf)}
    if not on_codes:
        raise on_no_integers(model)
    trace = exported_program(network, example, out, preprocessing)
    if not reached(trace.nodes, on_codes):
        raise on_no_integers(model)
    graph, islands = declare_lowest(trace.graph), islands_of(trace.nodes, on_codes)
    act_bits = sorted({m.grid.bits for m in network.modules() if isinstance(m, CodesOf)})
    content = {"islands": islands, "batch": trace.batch, "preprocessing": preprocessing, "act_bits": act_bits}
    needs("onnx", "deploy").helper.set_model_props(graph, metadata("mixed", content, about))
    clipped = [name for name, m in integers.items() if m.saturates]
    return Mixed(graph, list(integers), islands, clipped, trace.batch, trace.inputs, trace.outputs)


def _copied(model: nn.Module) -> nn.Module:
    """A copy on the CPU, in eval mode, at the precision in use: only quantizers refuse to be copied with a draw."""
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


def answers(model: nn.Module, mixed: Mixed, run: engines.Run, batches: Iterable[ParityBatch]) -> Parity:
    """The logits of `model` and of an engine's `run` of its graph on the same images; of inputs by name, those of each
    output, padding (where attention_mask is 0) left out, and the network's own with other last bits."""
    parity = Parity(saturating=mixed.saturating)
    for x, feed, labels in batches:
        out = answer(model, x)
        if isinstance(feed, np.ndarray) and isinstance(out, Tensor):
            parity.add(out, engines.run_in_parts(run, {"input": feed}, mixed.batch)[0], labels)
            continue
        feed = {"input": feed} if isinstance(feed, np.ndarray) else feed
        with other_last_bits(model):
            moved = answer(model, x)
        out, moved = outputs_by_name(out), outputs_by_name(moved)
        for name, value in out.items():
            if value.dim() == 0:
                raise ValueError(
                    f"the network returns {name!r} without a batch, a loss; leave labels out of its inputs"
                )
        padding = feed["attention_mask"] == 0 if "attention_mask" in feed else None
        results = engines.run_in_parts(run, feed, mixed.batch)
        for name, value, other, got in zip(mixed.outputs, out.values(), moved.values(), results, strict=True):
            unread = torch.from_numpy(padding) if padding is not None and padding.shape == got.shape else None
            parity.add(value, got, labels, other, output=name, padding=unread)
    return parity


class MixedFormat(Format):
    """ONNX with float parts."""

    name, suffix, extension = "mixed", ".mixed.onnx", ".onnx"
    help = "any network, float between integer matrix products"
    engines = ("onnxruntime",)
    runs_in = "onnxruntime"
    preprocessing = tokens = True

    def draft(
        self, model: nn.Module, example: Any, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None
    ) -> Draft:
        mixed = mixed_graph(model, example, preprocessing=preprocessing, about=about)
        return Draft(mixed, None, mixed.islands, mixed.saturating, mixed.batch)

    def write(self, draft: Draft, path: Path) -> None:
        write_onnx(draft.content.graph, path)

    def answers(self, model: nn.Module, draft: Draft, path: Path, run: Any, batches: Iterable[ParityBatch]) -> Parity:
        return answers(model, draft.content, run, batches)

    def recognised(self, path: Path) -> bool:
        return read_onnx(path)[1]["kind"] == "mixed"

    def stored(self, path: Path) -> dict[str, int]:
        return numbers_in(read_onnx(path)[0])

    def open(self, path: Path, network: nn.Module | None) -> Loaded:
        return loaded_onnx(path, self.name, self.engines, *read_onnx(path))
