"""Packed files themselves: what lies where, read with every number checked against the others. No network here.

One safetensors file:

    LAYER.codes     uint8: the weight's codes, 1 to 8 bits each, side by side (`bits.py`)
    floats          float32: everything else that the network holds, one after the other
    NAME            a tensor of another type (an index table, a counter), as it is
    metadata        "spequant": JSON: format, digest of everything, and

        layers      {layer: [shape, bits, levels, shape of the range] of the weight, or null where it is float
        acts        [name, bits, levels, signed] of each activation quantizer
                    one more entry, true, in either: its steps are powers of two at every width
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
from torch import Tensor

from spequant.deploy.bits import packed_size, unpack_bits

FORMAT = 1
KEY, FLOATS, CODES = "spequant", "floats", ".codes"
OUTPUTS, PRODUCT_SUFFIX = ":output", ":product"


def read_packed(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
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
    actual = content_digest(tensors, content)
    if actual != expected:
        raise ValueError(f"{path} is damaged: digest {actual}, expected {expected}; copy it anew")
    try:
        _check(content, tensors)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise ValueError(f"{path} contradicts itself: {error}") from error
    return tensors, content


def content_digest(tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> str:
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
        shape, bits, levels, ranges, *powers = spec
        _expect(powers in ([], [True]), f"{name} has {powers!r} after its ranges")
        _expect(bits in range(1, 9) and 2 <= levels <= 2**bits, f"{name} has {bits!r} bits and {levels!r} levels")
        _expect(_is_shape(shape) and _is_shape(ranges), f"{name} has the shapes {shape!r} and {ranges!r}")
        broadcast = not ranges or (len(ranges) == len(shape) and all(r in (1, s) for r, s in zip(ranges, shape)))  # noqa: B905
        _expect(broadcast, f"{name}: ranges of shape {ranges} do not broadcast against a weight of shape {shape}")
        codes = tensors[name + CODES]
        size = packed_size(math.prod(shape), bits)
        _expect(codes.dtype == torch.uint8 and list(codes.shape) == [size], f"{name}: its codes are not {size} bytes")
        if levels < 2**bits:
            _expect(int(unpack_bits(codes.numpy(), math.prod(shape), bits).max(initial=0)) < levels, f"{name}: a code")
    for q, bits, levels, signed, *powers in content["acts"]:
        _expect(powers in ([], [True]), f"{q} has {powers!r} after its sign")
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


def floats_of(head: Mapping[str, Any], flat: Tensor) -> dict[str, Tensor]:
    """{name: tensor} of what lies one after the other in `flat`; a name of a range holds low, then high."""
    floats: dict[str, Tensor] = {}
    start = 0
    for name, shape in head["floats"]:
        size = math.prod(shape)
        tensor = flat[start : start + size].reshape(shape)
        floats[name] = torch.stack([floats[name], tensor]) if ":" in name and name in floats else tensor
        start += size
    return floats


def others_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the network itself that are not fp32."""
    return {n: t for n, t in tensors.items() if n != FLOATS and not n.endswith(CODES)}


def layer_facts(path: Path) -> list[dict[str, Any]]:
    """What a packed file says of each layer without its network: name, weight_bits, act_bits (None: float), weights (a
    number), weight_range and act_range ((low, high), None: float), size and float_size, bytes of its weight. A float
    layer's weights are among the network's other numbers: they are 0 here, and so are biases."""
    tensors, head = read_packed(path)
    floats, rows = floats_of(head, tensors[FLOATS]), []
    for name, spec in head["layers"].items():
        number = head["slots"][name][0]
        act = None if number is None else floats[f"act:{number}"]
        weight = floats.get(f"weight:{name}")
        count = 0 if spec is None else math.prod(spec[0])
        rows.append(
            {
                "name": name,
                "weight_bits": None if spec is None else spec[1],
                "act_bits": None if number is None else head["acts"][number][1],
                "weight_range": None if weight is None else (float(weight.min()), float(weight.max())),
                "act_range": None if act is None else (float(act.min()), float(act.max())),
                "weights": count,
                "size": 0 if spec is None else packed_size(count, spec[1]),
                "float_size": 4 * count,
            }
        )
    return rows
