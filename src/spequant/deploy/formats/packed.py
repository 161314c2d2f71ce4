"""Packed files: a trained low-bit network at the size that its bits promise, and back to equal logits, bit for bit.

The file itself: `packed_file.py`.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from spequant.calibration.batches import answer
from spequant.deploy.bits import pack_bits, unpack_bits
from spequant.deploy.draws import run_without_draws
from spequant.deploy.engines import Run
from spequant.deploy.formats.format import Draft, Format
from spequant.deploy.grids import act_bounds, weight_codes
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.outputs import outputs_by_name
from spequant.deploy.packed_file import (
    CODES,
    FLOATS,
    FORMAT,
    KEY,
    OUTPUTS,
    PRODUCT_SUFFIX,
    content_digest,
    floats_of,
    others_of,
    read_packed,
)
from spequant.deploy.parity import Parity, ParityBatch
from spequant.files import placed
from spequant.functional import dequantize
from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer, QuantizedProduct, Wrapper, act_slots, quantize_output
from spequant.networks import copied, versioned
from spequant.preparation.adapters import adapt
from spequant.preparation.placement import replace_modules, unprepare, without_quantizers
from spequant.processes import innermost
from spequant.quantizers.base import Quantizer
from spequant.quantizers.held import Held

SKIPPED = "num_batches_tracked"  # counts training steps; evaluation does not read it


def pack(model: nn.Module, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Write the prepared and calibrated `model` to `path`.

    Args:
        model: the network; it stays as it is.
        path: of the file, which is replaced whole or not at all.
        about: JSON that `packed_about` gives back, e.g. how to make the float network.

    Raises:
        ValueError: nothing quantized, a quantizer whose values are not equally spaced.
        RuntimeError: not calibrated, or inside a precision context.
        OSError: `path` cannot be written.
    """
    model = innermost(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    if not layers:
        raise ValueError("model holds no quantized layer: call spequant.prepare first")
    tensors: dict[str, Tensor] = {}
    floats: list[tuple[str, Tensor]] = []
    specs: dict[str, Any] = {}
    for name, layer in layers.items():
        q = layer.weight_quantizer
        specs[name] = None
        if q is not None:
            codes, low, high = weight_codes(layer)
            bits = max(int(q.bits or 8), (int(q.home_levels) - 1).bit_length())  # more than its own: APoT's codes
            tensors[name + CODES] = torch.from_numpy(pack_bits(codes.reshape(-1).cpu().numpy(), bits))
            specs[name] = [list(codes.shape), bits, int(q.home_levels), list(low.shape), *_powers(q)]
            floats += [(f"weight:{name}", low), (f"weight:{name}", high)]
    acts, slots = _acts(model)
    for number, q in enumerate(acts):
        low, high = act_bounds(q)
        floats += [(f"act:{number}", low), (f"act:{number}", high)]
    for name, tensor in _state(without_quantizers(model), specs).items():
        if tensor.dtype == torch.float32:
            floats.append((name, tensor))
        else:
            tensors[name] = tensor.detach().cpu().contiguous()
    tensors[FLOATS] = torch.cat([t.detach().cpu().reshape(-1) for _, t in floats])
    content = {
        "layers": specs,
        "acts": [[q.name, q.bits, int(q.home_levels), bool(q.signed), *_powers(q)] for q in acts],
        "slots": slots,
        "floats": [[name, list(t.shape)] for name, t in floats],
        "about": dict(about or {}),
    }
    head = {"format": FORMAT, "digest": content_digest(tensors, content), **content}
    with placed(Path(path)) as temporary:
        temporary.write_bytes(save(tensors, {KEY: json.dumps(head, separators=(",", ":"))}))


def load_packed(path: str | Path, network: nn.Module) -> nn.Module:
    """The prepared model that `pack` wrote, in eval mode: a copy of the float `network` (its weights are not read).

    Its quantizers hold their ranges: it runs, switches precision and is exported; ranges are not trained any more.

    Args:
        path: of the file.
        network: the float network; it stays as it is.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: names what is damaged, of a newer format, or not that of `network`.
    """
    path, network = Path(path), innermost(network)
    tensors, head = read_packed(path)
    _check_fit(path, tensors, head, network)
    model = _adapted(network, head)
    floats = floats_of(head, tensors[FLOATS])
    state = {**{n: floats[n] for n in floats if ":" not in n}, **others_of(tensors)}
    model.load_state_dict(versioned(model, state), strict=False)
    acts = [_act(number, spec, floats) for number, spec in enumerate(head["acts"])]
    wrappers: dict[int, nn.Module] = {}
    outputs: dict[str, Quantizer] = {}
    for key, numbers in head["slots"].items():
        quantizers: list[Any] = [None if n is None else acts[n] for n in numbers]
        name = key.removesuffix(OUTPUTS).removesuffix(PRODUCT_SUFFIX)
        module = _layer(path, model, name)
        if key.endswith(OUTPUTS):
            outputs[name] = quantizers[0]
        elif key.endswith(PRODUCT_SUFFIX):
            wrappers[id(module)] = QuantizedProduct(module, *quantizers)
        elif name in head["layers"]:
            wrappers[id(module)] = QuantizedLayer(module, _weight(name, head, tensors, floats, module), *quantizers)
        else:
            wrappers[id(module)] = QuantizedAdd(module, *quantizers)
    model = replace_modules(model, wrappers)
    for name, q in outputs.items():
        quantize_output(model.get_submodule(name), q)
    return model.eval()


def _adapted(network: nn.Module, head: Mapping[str, Any]) -> nn.Module:
    """A copy of the float `network` with the layers that the file speaks of."""
    model = copied(network)
    adapt(model, products=any(key.endswith(PRODUCT_SUFFIX) for key in head["slots"]))
    return model


def check_packed(path: str | Path, network: nn.Module) -> None:
    """ValueError: the file is damaged or not one of `network`, which may be on the device "meta": nothing is copied."""
    path = Path(path)
    _check_fit(path, *read_packed(path), innermost(network))


def _check_fit(path: Path, tensors: Mapping[str, Tensor], head: Mapping[str, Any], network: nn.Module) -> None:
    contents = {n: (tuple(shape), torch.float32) for n, shape in head["floats"] if ":" not in n}
    contents |= {n: (tuple(t.shape), t.dtype) for n, t in others_of(tensors).items()}
    network = _adapted(network, head)
    _compare(path, contents, {n: (tuple(t.shape), t.dtype) for n, t in _state(network, head["layers"]).items()})
    for name, spec in head["layers"].items():
        shape = tuple(_layer(path, network, name).weight.shape)
        if spec is not None and tuple(spec[0]) != shape:
            raise ValueError(f"{path}: {name}.weight has shape {tuple(spec[0])}; expected {shape}, that of the network")


def packed_about(path: str | Path) -> dict[str, Any]:
    """The JSON that `pack` was given as `about`; the whole file is checked."""
    return read_packed(Path(path))[1]["about"]


def _acts(model: nn.Module) -> tuple[list[Quantizer], dict[str, list[int | None]]]:
    """Activation quantizers, each once, and which of them each layer has."""
    number: dict[int, int] = {}
    acts: list[Quantizer] = []
    for _, module, attribute in act_slots(model):
        q = getattr(module, attribute)
        if id(q) not in number:
            number[id(q)] = len(acts)
            acts.append(q)
    slots: dict[str, list[int | None]] = {}
    for name, module in model.named_modules():
        if isinstance(module, Wrapper):
            in_order = [getattr(module, attribute) for attribute in module.ACTS]
            key = name + PRODUCT_SUFFIX if isinstance(module, QuantizedProduct) else name
            slots[key] = [None if q is None else number[id(q)] for q in in_order]
        if OUTPUT in module._modules:
            slots[name + OUTPUTS] = [number[id(module._modules[OUTPUT])]]
    return acts, slots


def _powers(q: Quantizer) -> list[bool]:
    """[True] of a quantizer whose steps are powers of two, at every width; nothing of others, as in older files."""
    return [True] if q.power_of_two else []


def _state(network: nn.Module, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of a float network but for the weights that `layers` quantizes and the counters of training steps."""
    weights = {f"{name}.weight" if name else "weight" for name, spec in layers.items() if spec is not None}
    state = {n: t for n, t in network.state_dict().items() if n not in weights and n.rpartition(".")[2] != SKIPPED}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or ":" in name or name == FLOATS or name.endswith(CODES):
            raise ValueError(f"{name} is a {type(tensor).__name__} that a packed file cannot hold under that name")
    return state


def _compare(path: Path, contents: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in [*expected, *contents]:
        if name not in contents:
            raise ValueError(f"{path} lacks {name}, which the network has: it is the file of another network")
        if name not in expected:
            raise ValueError(f"{path} holds {name}, which the network does not have: it is the file of another network")
        if contents[name] != expected[name]:
            raise ValueError(f"{path}: {name} is {contents[name]}; expected {expected[name]}, as in the network")


def _layer(path: Path, model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{path} quantizes the layer {name!r}, which the network does not have") from None


def _act(number: int, spec: list[Any], floats: Mapping[str, Tensor]) -> Held:
    name, bits, levels, signed, *powers = spec
    q = Held(bits, levels=levels, signed=signed, power_of_two=powers == [True])
    q.name = name
    q.hold(*floats[f"act:{number}"])
    return q


def _weight(name: str, head: Mapping[str, Any], tensors: Mapping[str, Tensor], floats: Any, layer: Any) -> Held | None:
    """The quantizer of a layer's weight; the layer gets a new weight, the values of its codes."""
    spec = head["layers"][name]
    if spec is None:
        return None
    shape, bits, levels, ranges, *powers = spec
    q = Held(bits, levels=levels, shape=tuple(ranges), of_weight=True, power_of_two=powers == [True])
    q.name = name
    q.hold(*floats[f"weight:{name}"])
    codes = unpack_bits(tensors[name + CODES].numpy(), math.prod(shape), bits)
    values = dequantize(torch.from_numpy(codes).float().reshape(shape), *q.grid_bounds(layer.weight), q.levels)
    layer.weight = nn.Parameter(values.to(layer.weight.dtype))
    if hasattr(layer, "effective_weight"):
        layer.folded = True
    return q


class Packed(Format):
    """Packed files."""

    name, suffix, extension = "packed", ".packed", None
    help = "weights at their real width, and back to equal logits"
    runs_in = "torch; becomes any of the others"
    tokens = any_width = True

    def draft(
        self, model: nn.Module, example: Any, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None
    ) -> Draft:
        run_without_draws(model, example)
        return Draft((model, about))

    def write(self, draft: Draft, path: Path) -> None:
        pack(draft.content[0], path, draft.content[1])

    def answers(
        self, model: nn.Module, draft: Draft, path: Path, run: Run | None, batches: Iterable[ParityBatch]
    ) -> Parity:
        """ValueError: an answer that is not equal, bit for bit."""
        weights = list(model.parameters())
        loaded = load_packed(path, unprepare(model)).to(weights[0].device)
        if any(w.dim() == 4 and not w.is_contiguous() for w in weights):
            loaded = loaded.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        parity = Parity()
        for x, _, labels in batches:
            expected, got = (outputs_by_name(answer(m, x)) for m in (model, loaded))
            for output, a in expected.items():
                if not torch.equal(a, got[output]):
                    wrong = int((a != got[output]).sum())
                    raise ValueError(f"{path.name}: {wrong} of {a.numel()} logits differ from the network's")
                parity.add(a, got[output].float().cpu().numpy(), labels, output=output)
        return parity

    def open(self, path: Path, network: nn.Module | None) -> Loaded:
        _, head = read_packed(path)
        model = None if network is None else load_packed(path, network)
        widths = {spec[1] for spec in head["acts"]}
        return Loaded(path, self.name, about=head["about"], act_bits=tuple(sorted(widths)), model=model)
