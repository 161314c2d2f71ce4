"""Packed files: a trained low-bit network at the size that its bits promise, and back to equal logits, bit for bit.

One safetensors file:

    LAYER.codes     uint8: the weight's codes, 1 to 8 bits each, side by side (`bits.py`)
    floats          float32: everything else that the network holds, one after the other
    NAME            a tensor of another type (an index table, a counter), as it is
    metadata        "spequant": JSON: format, digest of everything, and

        layers      {layer: [shape, bits, levels, shape of the range] of the weight, or null where it is float
        acts        [name, bits, levels, signed] of each activation quantizer
        slots       {layer: numbers of its activation quantizers or null}: layers with one number share one; of a
                    module's output "NAME:output", of a product of two activations "NAME:product"
        floats      [[name, shape] ...]: what `floats` holds: ranges ("weight:LAYER", "act:NUMBER", low then high), then
                    the network's own by their names in its state_dict
        about       what the writer said of the network: JSON
"""

import hashlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from spequant.deploy.bits import pack_bits, packed_size, unpack_bits
from spequant.files import placed
from spequant.functional import dequantize
from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer, QuantizedProduct, Wrapper, act_slots, quantize_output
from spequant.networks import copied, versioned
from spequant.preparation.adapters import adapt
from spequant.preparation.placement import replace_modules, without_quantizers
from spequant.processes import innermost
from spequant.quantizers.base import Quantizer
from spequant.quantizers.held import Held

FORMAT = 1
KEY, FLOATS, CODES = "spequant", "floats", ".codes"
OUTPUTS, PRODUCTS = ":output", ":product"
SKIPPED = "num_batches_tracked"  # counts training steps; evaluation does not read it


def pack(model: nn.Module, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Write the prepared and calibrated `model` to `path`.

    about: JSON that `packed_about` gives back, e.g. how to make the float network.

    ValueError: nothing quantized, a quantizer whose values are not equally spaced. RuntimeError: not calibrated, or
    inside a precision context. OSError: `path` cannot be written; what was there before stays.
    """
    model = innermost(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, QuantizedLayer)}
    if not layers:
        raise ValueError("model holds no quantized layer: call spequant.prepare first")
    tensors: dict[str, Tensor] = {}
    floats: list[tuple[str, Tensor]] = []
    written: dict[str, Any] = {}
    for name, layer in layers.items():
        q = layer.weight_quantizer
        written[name] = None
        if q is not None:
            codes, low, high = weight_codes(layer)
            bits = max(int(q.bits or 8), (int(q.home_levels) - 1).bit_length())  # more than its own: APoT's codes
            tensors[name + CODES] = torch.from_numpy(pack_bits(codes.reshape(-1).cpu().numpy(), bits))
            written[name] = [list(codes.shape), bits, int(q.home_levels), list(low.shape)]
            floats += [(f"weight:{name}", low), (f"weight:{name}", high)]
    acts, slots = _acts(model)
    for number, q in enumerate(acts):
        low, high = act_bounds(q)
        floats += [(f"act:{number}", low), (f"act:{number}", high)]
    for name, tensor in _own(without_quantizers(model), written).items():
        if tensor.dtype == torch.float32:
            floats.append((name, tensor))
        else:
            tensors[name] = tensor.detach().cpu().contiguous()
    tensors[FLOATS] = torch.cat([t.detach().cpu().reshape(-1) for _, t in floats])
    content = {
        "layers": written,
        "acts": [[q.name, q.bits, int(q.home_levels), bool(q.signed)] for q in acts],
        "slots": slots,
        "floats": [[name, list(t.shape)] for name, t in floats],
        "about": dict(about or {}),
    }
    head = {"format": FORMAT, "digest": digest(tensors, content), **content}
    with placed(Path(path)) as temporary:
        temporary.write_bytes(save(tensors, {KEY: json.dumps(head, separators=(",", ":"))}))


def load_packed(path: str | Path, network: nn.Module) -> nn.Module:
    """The prepared model that `pack` wrote, in eval mode: a copy of the float `network` (its weights are not read).

    Its quantizers hold their ranges: it runs, switches precision and is exported; ranges are not trained any more.

    FileNotFoundError. ValueError names what is damaged, of a newer format, or not that of `network`.
    """
    path, network = Path(path), innermost(network)
    tensors, head = _read(path)
    _check_fit(path, tensors, head, network)
    model = _adapted(network, head)
    floats = _floats(head, tensors[FLOATS])
    state = {**{n: floats[n] for n in floats if ":" not in n}, **_others(tensors)}
    model.load_state_dict(versioned(model, state), strict=False)
    acts = [_act(number, spec, floats) for number, spec in enumerate(head["acts"])]
    made: dict[int, nn.Module] = {}
    outputs: dict[str, Quantizer] = {}
    for key, numbers in head["slots"].items():
        own_acts: list[Any] = [None if n is None else acts[n] for n in numbers]
        name = key.removesuffix(OUTPUTS).removesuffix(PRODUCTS)
        module = _layer(path, model, name)
        if key.endswith(OUTPUTS):
            outputs[name] = own_acts[0]
        elif key.endswith(PRODUCTS):
            made[id(module)] = QuantizedProduct(module, *own_acts)
        elif name in head["layers"]:
            made[id(module)] = QuantizedLayer(module, _weight(name, head, tensors, floats, module), *own_acts)
        else:
            made[id(module)] = QuantizedAdd(module, *own_acts)
    model = replace_modules(model, made)
    for name, q in outputs.items():
        quantize_output(model.get_submodule(name), q)
    return model.eval()


def _adapted(network: nn.Module, head: Mapping[str, Any]) -> nn.Module:
    """A copy of the float `network` with the layers that the file speaks of."""
    model = copied(network)
    adapt(model, products=any(key.endswith(PRODUCTS) for key in head["slots"]))
    return model


def check_packed(path: str | Path, network: nn.Module) -> None:
    """ValueError: the file is damaged or not one of `network`, which may be on the device "meta": nothing is copied."""
    path = Path(path)
    _check_fit(path, *_read(path), innermost(network))


def _check_fit(path: Path, tensors: Mapping[str, Tensor], head: Mapping[str, Any], network: nn.Module) -> None:
    found = {n: (tuple(shape), torch.float32) for n, shape in head["floats"] if ":" not in n}
    found |= {n: (tuple(t.shape), t.dtype) for n, t in _others(tensors).items()}
    network = _adapted(network, head)
    _compare(path, found, {n: (tuple(t.shape), t.dtype) for n, t in _own(network, head["layers"]).items()})
    for name, spec in head["layers"].items():
        shape = tuple(_layer(path, network, name).weight.shape)
        if spec is not None and tuple(spec[0]) != shape:
            raise ValueError(f"{path}: {name}.weight has shape {tuple(spec[0])}; expected {shape}, that of the network")


def packed_about(path: str | Path) -> dict[str, Any]:
    """The JSON that `pack` was given as `about`; the whole file is checked."""
    return _read(Path(path))[1]["about"]


def weight_codes(layer: QuantizedLayer) -> tuple[Tensor, Tensor, Tensor]:
    """(codes uint8, low, high) of a layer's quantized weight; ValueError where its values are not equally spaced.

    low, high: of the quantizer's shape; one a row where a row of padding has its own, (0, 0)."""
    q = layer.weight_quantizer
    assert q is not None
    weight: Any = layer.float_weight
    with torch.no_grad():
        values = q(weight)
        codes, (low, high) = q.encode(weight), q.span(weight)
        if not torch.equal(dequantize(codes, low, high, q.levels).to(values.dtype), values):
            raise ValueError(f"{q.name}: the values of {type(q).__name__} are not equally spaced codes; leave it float")
    shape = torch.broadcast_shapes(low.shape, q.shape)
    return codes.to(torch.uint8), low.expand(shape).contiguous(), high.expand(shape).contiguous()


def act_bounds(q: Quantizer) -> tuple[Tensor, Tensor]:
    """(low, high) of an activation quantizer, 0-dim; ValueError where they follow from each tensor, or its values are
    not those of an equally spaced grid."""
    with torch.no_grad():
        device = q.home_levels.device
        low, high = (b.reshape(()) for b in q.bounds(torch.zeros(2, 1, device=device)))
        x = torch.linspace(-1.5, 1.5, 4001, device=device) * torch.maximum(high, -low)
        codes = q.encode(x)
        same = torch.equal(torch.stack(q.bounds(x)).reshape(2), torch.stack([low, high]))
        if not same or not torch.equal(dequantize(codes, low, high, q.levels), q(x)):
            raise ValueError(
                f"{q.name}: {type(q).__name__} is no grid of equally spaced values between stored bounds, and has no "
                "integer form"
            )
    return low, high


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
            held = [getattr(module, attribute) for attribute in module.ACTS]
            key = name + PRODUCTS if isinstance(module, QuantizedProduct) else name
            slots[key] = [None if q is None else number[id(q)] for q in held]
        if OUTPUT in module._modules:
            slots[name + OUTPUTS] = [number[id(module._modules[OUTPUT])]]
    return acts, slots


def _own(network: nn.Module, layers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of a float network but for the weights that `layers` quantizes and the counters of training steps."""
    weights = {f"{name}.weight" if name else "weight" for name, spec in layers.items() if spec is not None}
    state = {n: t for n, t in network.state_dict().items() if n not in weights and n.rpartition(".")[2] != SKIPPED}
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or ":" in name or name == FLOATS or name.endswith(CODES):
            raise ValueError(f"{name} is a {type(tensor).__name__} that a packed file cannot hold under that name")
    return state


def _compare(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    for name in [*expected, *found]:
        if name not in found:
            raise ValueError(f"{path} lacks {name}, which the network has: it is the file of another network")
        if name not in expected:
            raise ValueError(f"{path} holds {name}, which the network does not have: it is the file of another network")
        if found[name] != expected[name]:
            raise ValueError(f"{path}: {name} is {found[name]}; expected {expected[name]}, as in the network")


def _layer(path: Path, model: nn.Module, name: str) -> Any:
    try:
        return model.get_submodule(name)
    except AttributeError:
        raise ValueError(f"{path} quantizes the layer {name!r}, which the network does not have") from None


def _floats(head: Mapping[str, Any], flat: Tensor) -> dict[str, Tensor]:
    """{name: tensor} of what lies one after the other in `flat`; a name of a range holds low, then high."""
    found: dict[str, Tensor] = {}
    start = 0
    for name, shape in head["floats"]:
        size = math.prod(shape)
        tensor = flat[start : start + size].reshape(shape)
        found[name] = torch.stack([found[name], tensor]) if ":" in name and name in found else tensor
        start += size
    return found


def _others(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network's own tensors that are not fp32."""
    return {n: t for n, t in tensors.items() if n != FLOATS and not n.endswith(CODES)}


def _act(number: int, spec: list[Any], floats: Mapping[str, Tensor]) -> Held:
    name, bits, levels, signed = spec
    q = Held(bits, levels=levels, signed=signed)
    q.name = name
    q.hold(*floats[f"act:{number}"])
    return q


def _weight(name: str, head: Mapping[str, Any], tensors: Mapping[str, Tensor], floats: Any, layer: Any) -> Held | None:
    """The quantizer of a layer's weight; the layer gets the values of its codes, a weight of its own."""
    spec = head["layers"][name]
    if spec is None:
        return None
    shape, bits, levels, ranges = spec
    q = Held(bits, levels=levels, shape=tuple(ranges), of_weight=True)
    q.name = name
    q.hold(*floats[f"weight:{name}"])
    codes = unpack_bits(tensors[name + CODES].numpy(), math.prod(shape), bits)
    values = dequantize(torch.from_numpy(codes).float().reshape(shape), *q.bounds(layer.weight), q.levels)
    layer.weight = nn.Parameter(values.to(layer.weight.dtype))
    if hasattr(layer, "effective_weight"):
        layer.folded = True
    return q


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors, metadata), every byte and every number in them checked against each other."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a packed file")
    try:
        with safe_open(path, "pt") as file:
            head = json.loads((file.metadata() or {})[KEY])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        version, expected = head["format"], head["digest"]
        content = {k: head[k] for k in ("layers", "acts", "slots", "floats", "about")}
    except (SafetensorError, KeyError, TypeError, ValueError, UnicodeError, RecursionError) as error:
        raise ValueError(f"{path} is no packed file, or a damaged one ({error!r}); write or copy it anew") from error
    if version != FORMAT:
        raise ValueError(
            f"{path}: format is {version!r}; this version reads {FORMAT}: install the version that wrote it"
        )
    found = digest(tensors, content)
    if found != expected:
        raise ValueError(f"{path} is damaged: digest {found}, expected {expected}; copy it anew")
    try:
        _check(content, tensors)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} contradicts itself: {error}") from error
    return tensors, content


def digest(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
    """BLAKE2b, 128 bits, of all names, types, shapes and bytes of a packed file's tensors, and of its metadata but for
    format and digest."""
    state = hashlib.blake2b(json.dumps(content, sort_keys=True).encode(), digest_size=16)
    for name in sorted(tensors):
        tensor = tensors[name]
        state.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        state.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return state.hexdigest()


def _check(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """ValueError where sizes, numbers and names in the metadata are not those of the tensors: a file may be hostile."""
    for name, spec in content["layers"].items():
        if spec is None:
            continue
        shape, bits, levels, ranges = spec
        _expect(bits in range(1, 9) and 2 <= levels <= 2**bits, f"{name} has {bits!r} bits and {levels!r} levels")
        _expect(_is_shape(shape) and _is_shape(ranges), f"{name} has the shapes {shape!r} and {ranges!r}")
        broadcast = not ranges or (len(ranges) == len(shape) and all(r in (1, s) for r, s in zip(ranges, shape)))  # noqa: B905
        _expect(broadcast, f"{name}: ranges of shape {ranges} do not broadcast against a weight of shape {shape}")
        codes = tensors[name + CODES]
        size = packed_size(math.prod(shape), bits)
        _expect(codes.dtype == torch.uint8 and list(codes.shape) == [size], f"{name}: its codes are not {size} bytes")
        if levels < 2**bits:
            _expect(int(unpack_bits(codes.numpy(), math.prod(shape), bits).max(initial=0)) < levels, f"{name}: a code")
    for q, bits, levels, signed in content["acts"]:
        _expect(isinstance(q, str) and isinstance(signed, bool), f"{q!r} is no name, or {signed!r} no sign")
        _expect(bits in range(1, 9) and 2 <= levels <= 2**bits, f"{q} has {bits!r} bits and {levels!r} levels")
    for name, numbers in content["slots"].items():
        allowed = all(n is None or n in range(len(content["acts"])) for n in numbers)
        count = 1 if name in content["layers"] or name.endswith(OUTPUTS) else 2
        allowed = allowed and (name in content["layers"] or None not in numbers)
        _expect(allowed and len(numbers) == count, f"{name} has the quantizers {numbers!r}")
    _expect(set(content["layers"]) <= set(content["slots"]), "a layer has no entry among the slots")
    flat = tensors[FLOATS]
    _expect(all(isinstance(n, str) and _is_shape(shape) for n, shape in content["floats"]), "floats have no shapes")
    size = sum(math.prod(shape) for _, shape in content["floats"])
    _expect(flat.dtype == torch.float32 and list(flat.shape) == [size], f"floats are {flat.numel()}, not {size}")
    names = [n for n, _ in content["floats"]]
    ranges = {f"weight:{n}": spec[3] for n, spec in content["layers"].items() if spec is not None}
    ranges |= {f"act:{n}": [] for n in range(len(content["acts"]))}
    declared = [(n, shape) for n, shape in content["floats"] if ":" in n]
    _expect(sorted(declared) == sorted([(n, s) for n, s in ranges.items()] * 2), "ranges are not those of the layers")
    _expect(len(set(names)) == len(names) - len(ranges), "a name appears twice among the floats")


def _is_shape(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**40 for n in value)


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
