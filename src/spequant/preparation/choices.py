"""Which quantizer each weight, input, addend and factor of a network gets, by the arguments of `prepare`.

Nothing is replaced here (`placement.py` does that), and how a quantizer rounds is its own affair (`quantizers/`).
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import Tensor, nn

from spequant.layers import QuantizedAdd, QuantizedLayer, QuantizedProduct
from spequant.networks import EMBEDDINGS, TRANSPOSED
from spequant.preparation.adapters.encoder import Addition
from spequant.preparation.additions import find_additions
from spequant.preparation.between import groups_between
from spequant.quantizers import LeastSquares, Quantizer
from spequant.quantizers.pruned import tell_lost_zeros

QuantizerChoice = Quantizer | int | None
"""A quantizer to copy; or bits, for the same kind of quantizer as the other layers have; or None, float."""
Override = int | tuple[QuantizerChoice, QuantizerChoice] | None
"""Bits of weight and activation; or one choice for each, (weight, act); or None, both float."""

PAIRS = {
    "residual_addition": (QuantizedAdd, "branch", "shortcut"),
    "attention_product": (QuantizedProduct, "left", "right"),
}
"""{attribute that marks a module with two inputs: (its quantized module, names of the two inputs)}."""


@dataclass(frozen=True)
class LayerChoices:
    """The arguments of `prepare` that decide about layers; see there."""

    weight: Quantizer | None
    act: Quantizer | None
    depthwise: Quantizer | None
    ends: Override
    embeddings: QuantizerChoice
    overrides: Mapping[str, Override]
    per_channel: bool


def quantized_layers(layers: Mapping[str, nn.Module], choices: LayerChoices) -> dict[int, QuantizedLayer]:
    """Make the quantized layer of each float layer that gets a quantizer; layers with one weight share its quantizer.

    Args:
        layers: Float layers by name, in the model's order, at least one.
        choices: What the user asked for.

    Returns:
        {id of the float layer: its quantized layer}.

    Raises:
        ValueError: A choice does not fit its layer, or layers with one weight would need different quantizers.

    Warns:
        UserWarning: Exact zeros of a pruned weight have no level of their own.
    """
    templates = _weight_templates(layers, choices)
    override_of: dict[str, Override] = {name: (template, choices.act) for name, template in templates.items()}
    override_of |= _exceptions(layers, choices)
    replacements: dict[int, QuantizedLayer] = {}
    quantizers: dict[int, Quantizer] = {}  # by the id of the weight
    for name, layer in layers.items():
        for_weight, for_act = _pair(name, override_of[name])
        shape = _range_shape(layer) if choices.per_channel or _is_depthwise(layer) else ()
        weight = _make(for_weight, templates[name], name, of_weight=True, shape=shape)
        act = _make(for_act, choices.act, name, of_weight=False, shape=())
        if weight is not None:
            weight = _shared(weight, quantizers.setdefault(id(layer.weight), weight))
            weight.padding = getattr(layer, "padding_idx", weight.padding)
        if weight is not None or act is not None:
            replacements[id(layer)] = QuantizedLayer(layer, weight, act)
    tell_lost_zeros((layer.weight_quantizer, layer.float_weight) for layer in replacements.values())
    return replacements


def quantized_activations(
    model: nn.Module,
    residual: QuantizerChoice,
    products: QuantizerChoice,
    between: QuantizerChoice,
    act: Quantizer | None,
) -> tuple[dict[int, nn.Module], dict[str, Quantizer]]:
    """Make the quantizers of what stands between the layers of the float network `model`.

    Args:
        model: The float network, adapted.
        residual: What the addends of residual additions get.
        products: What both factors of attention products get.
        between: What the tensors that `groups_between` finds get.
        act: The quantizer whose kind is used where the others are bits; None: all activations are float.

    Returns:
        ({id of a marked module: its quantized module}, {name of a module: the quantizer of its output}). Addends are
        quantized as outputs where the network marks no residual addition and tracing finds some.

    Raises:
        ValueError: `products` is given, but the network has no product that is known or marked.

    Warns:
        UserWarning: The network has to be traced, which is impossible.
    """
    if act is None:
        return {}, {}
    additions = _quantized_pairs(model, "residual_addition", residual, act)
    marked_by_network = [q for q in additions.values() if type(q.add) is not Addition]
    outputs = {} if marked_by_network else _quantized_outputs(model, residual, act)
    outputs = _quantized_between(model, between, act, outputs)
    return additions | _quantized_pairs(model, "attention_product", products, act), outputs


def _weight_templates(layers: Mapping[str, nn.Module], choices: LayerChoices) -> dict[str, Quantizer | None]:
    """Return {name of a layer: the quantizer whose kind its weight gets}."""
    weight, depthwise = choices.weight, choices.depthwise
    if depthwise is None:
        depthwise = weight
        if weight is not None and not weight.fits_few:
            depthwise = LeastSquares(weight.bits, zero=False, power_of_two=weight.power_of_two)
    elif not any(_is_depthwise(layer) for layer in layers.values()):
        raise ValueError(f"depthwise is {depthwise!r}, but no layer outside skip is a depthwise convolution")
    return {name: depthwise if _is_depthwise(layer) else weight for name, layer in layers.items()}


def _is_depthwise(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) == getattr(layer, "in_channels", 0) > 1


def _exceptions(layers: Mapping[str, nn.Module], choices: LayerChoices) -> dict[str, Override]:
    """Return the choices for single layers: the ends, embeddings, and layers that a pattern of `overrides` matches."""
    tables = {n for n, m in layers.items() if isinstance(m, EMBEDDINGS)}
    others = [n for n in layers if n not in tables]
    exceptions: dict[str, Override] = dict.fromkeys(others[-1:], choices.ends)
    if next(iter(layers)) not in tables:
        exceptions[others[0]] = choices.ends
    exceptions |= {n: (choices.embeddings, None) for n in tables}
    for pattern, override in choices.overrides.items():
        for name in (n for n in layers if fnmatchcase(n, pattern)):
            exceptions[name] = (override, None) if name in tables and not isinstance(override, tuple) else override
    for name in tables:
        choice = exceptions[name]
        if isinstance(choice, tuple) and len(choice) == 2 and choice[1] is not None:
            raise ValueError(
                f"{name}: {choice!r} was given for an embedding, which reads indices; expected bits of its weight, "
                "(weight, None), or None"
            )
    return exceptions


def _pair(name: str, override: Override) -> tuple[QuantizerChoice, QuantizerChoice]:
    """Return the choices for the weight and for the input of the layer `name`."""
    if isinstance(override, Quantizer):
        raise ValueError(f"{name}: {override!r} does not say whether it is for weight or act; give a pair")
    pair = override if isinstance(override, tuple) else (override, override)
    if len(pair) != 2:
        raise ValueError(f"{name}: {override!r} was given; expected bits, a pair (weight, act), or None")
    return pair


def _shared(quantizer: Quantizer, first: Quantizer) -> Quantizer:
    """Return `first`, the quantizer of the first layer with this weight, if it equals that of the present layer."""
    if first.config() != quantizer.config():
        raise ValueError(
            f"{first.name} and {quantizer.name} have one weight, but it was to be quantized by {first!r} and by "
            f"{quantizer!r}; give both the same with overrides (first and last layer have 8 bits by default: see ends)"
        )
    return first


def _range_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of one range per output channel, broadcastable to the weight of `layer`."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    transposed = isinstance(layer, TRANSPOSED)
    if transposed and layer.groups > 1 and not _is_depthwise(layer):
        raise ValueError(
            f"per_channel is True, but {layer!r} has the output channels of its {layer.groups} groups in one axis; "
            "prepare without per_channel, or leave this layer float with skip"
        )
    axis = 1 if transposed and not _is_depthwise(layer) else 0
    return tuple(size if d == axis else 1 for d, size in enumerate(weight.shape))


def _quantized_pairs(model: nn.Module, mark: str, choice: QuantizerChoice, act: Quantizer) -> dict[int, nn.Module]:
    """Return {id of a module with two inputs that bears `mark`: its quantized module}."""
    replacements: dict[int, nn.Module] = {}
    kind, *sides = PAIRS[mark]
    marked = {n: m for n, m in model.named_modules() if getattr(m, mark, False)}
    if mark == "attention_product" and choice is not None and not marked:
        raise ValueError(
            f"products is {choice!r}, but {type(model).__name__} has no attention product that is known or marked; "
            "mark them: modules with attention_product = True and forward(left, right)"
        )
    for name, module in marked.items():
        first, second = (_make(choice, act, f"{name}.{side}", of_weight=False, shape=()) for side in sides)
        if first is not None and second is not None:
            replacements[id(module)] = kind(module, first, second)
    return replacements


def _quantized_outputs(model: nn.Module, residual: QuantizerChoice, act: Quantizer) -> dict[str, Quantizer]:
    """Return {name of a module whose output is an addend of an unmarked addition: the quantizer of that output}."""
    if residual is None:
        return {}
    try:
        pairs = find_additions(model).pairs
    except ValueError as error:
        warnings.warn(
            f"residual additions of {type(model).__name__} stay float: it cannot be traced ({error}). Mark them in the "
            "network (modules with residual_addition = True), or pass residual=None",
            stacklevel=4,  # the call of `prepare`
        )
        return {}
    names = dict.fromkeys(name for pair in pairs for name in pair)
    quantizers = {n: _make(residual, act, f"{n}.output", of_weight=False, shape=()) for n in names}
    return {name: q for name, q in quantizers.items() if q is not None}


def _quantized_between(
    model: nn.Module, between: QuantizerChoice, act: Quantizer, outputs: Mapping[str, Quantizer]
) -> dict[str, Quantizer]:
    """Return `outputs` with the quantizers of what stands between the layers. A tensor that has one keeps it, unless
    several have to share one."""
    quantizers = dict(outputs)
    if between is None:
        return quantizers
    try:
        groups = groups_between(model)
    except ValueError as error:
        warnings.warn(
            f"what stands between the layers of {type(model).__name__} stays float: it cannot be traced ({error}). "
            "Pass between=None to say that this is meant",
            stacklevel=4,  # the call of `prepare`
        )
        return quantizers
    for names in groups:
        if len(names) > 1 or names[0] not in quantizers:
            quantizer = _make(between, act, f"{names[0]}.output", of_weight=False, shape=())
            assert quantizer is not None
            quantizers |= dict.fromkeys(names, quantizer)
    return quantizers


def _make(choice: QuantizerChoice, template: Quantizer | None, name: str, *, of_weight: bool, shape: tuple[int, ...]):
    """Make the quantizer of one tensor, or return None where it stays float."""
    if choice is None or template is None:
        return None
    source = choice if isinstance(choice, Quantizer) else template.at(choice)
    if source.bits is None:
        return None
    if source.weights_only and not of_weight:
        raise ValueError(
            f"{name}: {type(source).__name__} was given for an activation; it is for weights: use PACT, LSQ, LSQPlus, "
            "DoReFa or MinMax for activations"
        )
    quantizer = source.like(of_weight=of_weight, shape=shape, signed=True if of_weight else source.signed)
    quantizer.name = name
    return quantizer
