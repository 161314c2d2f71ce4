"""A prepared network as plain JSON, and a float network prepared again as it says.

The description is read off the network, not off the arguments of `prepare`, so that it holds whatever was changed
since, and does not depend on how layers and shared inputs are found. Tensors do not belong here (`states.py`).

    version     of this form
    network     name of the network's class
    adapted     names of the modules that call their layers since they are adapted (`adapters/`)
    slots       {place of a quantizer: its number, or null where the layer is float}; a quantizer may have many places
    quantizers  what each number stands for (`quantizer_form.py`)

A place is the name of a module and an attribute: `weight_quantizer` and `act_quantizer` of layers, `branch_quantizer`
and `shortcut_quantizer` of marked additions, `left_quantizer` and `right_quantizer` of products, `output_quantizer` of
modules whose output is an addend.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from spequant.layers import OUTPUT, QuantizedAdd, QuantizedLayer, QuantizedProduct, Wrapper
from spequant.names import some_of
from spequant.networks import EMBEDDINGS, QUANTIZABLE, copied
from spequant.preparation.adapters import adapt, adapted, restore
from spequant.preparation.placement import insert, move_quantizers, without_quantizers
from spequant.preparation.quantizer_form import made, plain_settings
from spequant.quantizers import Quantizer

VERSION = 1
DESCRIBED: tuple[type[Wrapper], ...] = (QuantizedLayer, QuantizedAdd, QuantizedProduct)


def describe(model: nn.Module) -> dict[str, Any]:
    """Return what is quantized in `model`, and how, as JSON from which `prepare_as` makes it again.

    Args:
        model: What `prepare` returned, calibrated or trained or not.

    Raises:
        ValueError: `model` is not prepared, or a quantizer cannot be described: its class or a setting, by name.
        RuntimeError: `model` is inside a precision context.
    """
    bare = without_quantizers(model, share=True)
    names = adapted(bare)
    folded = [name for name in names if getattr(bare.get_submodule(name), "folded", False)]
    if folded:
        raise ValueError(
            f"{some_of(folded)}: the weight was standardised when the packed file of this network was written, and "
            "cannot be described; describe the network that was packed"
        )
    restore(bare)
    numbers: dict[int, int] = {}
    quantizers: list[dict[str, Any]] = []
    slots: dict[str, int | None] = {}
    for place, quantizer in places(model):
        if quantizer is not None and id(quantizer) not in numbers:
            numbers[id(quantizer)] = len(quantizers)
            quantizers.append(plain_settings(quantizer))
        slots[place] = None if quantizer is None else numbers[id(quantizer)]
    name = type(bare).__name__
    return {"version": VERSION, "network": name, "adapted": names, "slots": slots, "quantizers": quantizers}


def prepare_as(network: nn.Module, description: Mapping[str, Any]) -> nn.Module:
    """Return a copy of `network` with the quantizers of a description; it needs a state, or calibration.

    Args:
        network: A float network of the same architecture; it is left as it is.
        description: What `describe` returned, also after a way through JSON.

    Raises:
        ValueError: `description` is of a newer version, malformed, or of another network.
    """
    return place_as(copied(network), description)


def place_as(network: nn.Module, description: Mapping[str, Any]) -> nn.Module:
    """Do what `prepare_as` does, with `network` itself: it is changed, or what is returned contains it."""
    check_description(description)
    if any(True for _ in places(network)):
        raise ValueError("network is prepared already; unprepare it first, or give the float one")
    adapt(network, only=description["adapted"])
    quantizers = [made(form) for form in description["quantizers"]]
    wrappers: dict[int, nn.Module] = {}
    outputs: dict[str, Quantizer] = {}
    for name, numbers in _by_module(description["slots"]).items():
        module = _module(network, name)
        of_module = {key: None if number is None else quantizers[number] for key, number in numbers.items()}
        if (output := of_module.pop(OUTPUT, None)) is not None:
            outputs[name] = output
        if of_module:
            wrappers[id(module)] = _wrapped(name, module, of_module)
    network = insert(network, wrappers, outputs)
    device = next((p.device for p in network.parameters() if p.device.type != "meta"), None)
    if device is not None:
        move_quantizers(network, device)
    return network


def places(model: nn.Module) -> Iterator[tuple[str, Quantizer | None]]:
    """Yield (place, the quantizer there, or None where a layer is float) of a prepared network, in its order."""
    for name, module in model.named_modules():
        attributes = ("weight_quantizer",) if isinstance(module, QuantizedLayer) else ()
        attributes += module.ACTS if isinstance(module, Wrapper) else ()
        for attribute in (*attributes, *((OUTPUT,) if OUTPUT in module._modules else ())):
            yield (f"{name}.{attribute}" if name else attribute), getattr(module, attribute)


def check_description(description: Mapping[str, Any]) -> None:
    """Raise a ValueError unless `description` has the form and the version that this module reads."""
    version = description.get("version")
    if version != VERSION:
        raise ValueError(
            f"version is {version!r}; this spequant reads descriptions of version {VERSION}: install the one that "
            "wrote it"
        )
    kinds = {"network": str, "adapted": list, "slots": dict, "quantizers": list}
    for key, kind in kinds.items():
        if not isinstance(description.get(key), kind):
            raise ValueError(f"{key} is {description.get(key)!r}; expected a {kind.__name__}, as `describe` writes it")
    count = len(description["quantizers"])
    for place, number in description["slots"].items():
        if number is not None and (type(number) is not int or not 0 <= number < count):
            raise ValueError(f"slots has {place!r}: {number!r}; expected 0 to {count - 1}, a number of quantizers")


def _by_module(slots: Mapping[str, int | None]) -> dict[str, dict[str, int | None]]:
    """Return {name of a module: {attribute: number of its quantizer}}."""
    modules: dict[str, dict[str, int | None]] = {}
    for place, number in slots.items():
        name, _, attribute = place.rpartition(".")
        modules.setdefault(name, {})[attribute] = number
    return modules


def _module(network: nn.Module, name: str) -> nn.Module:
    try:
        return network.get_submodule(name)
    except AttributeError as error:
        raise ValueError(
            f"slots has {name!r}, which {type(network).__name__} has not: the description is of another network, or "
            "of another version of the library that the network is from"
        ) from error


def _wrapped(name: str, module: nn.Module, quantizers: Mapping[str, Quantizer | None]) -> nn.Module:
    """Return the quantized module of `module` whose attributes are those of `quantizers`."""
    for kind in DESCRIBED:
        attributes = (*(("weight_quantizer",) if kind is QuantizedLayer else ()), *kind.ACTS)
        if set(quantizers) == set(attributes):
            fits = (
                isinstance(module, QUANTIZABLE + EMBEDDINGS)
                if kind is QuantizedLayer
                else None not in quantizers.values()
            )
            if not fits:
                break
            return kind(module, *(quantizers[attribute] for attribute in attributes))
    raise ValueError(
        f"slots has {', '.join(quantizers)} for {name!r}, a {type(module).__name__}; expected the quantizers of a "
        "layer, a marked addition or a product"
    )
