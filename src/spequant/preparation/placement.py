"""`prepare` and `unprepare`: the only surgery on a user's model.

Decides which layer gets which quantizer; how a quantizer rounds, and where its range comes from, does not belong here.
"""

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

from spequant.layers import (
    OUTPUT,
    QuantizedAdd,
    QuantizedLayer,
    QuantizedProduct,
    Wrapper,
    act_slots,
    leave_output,
    quantize_output,
)
from spequant.names import some_of
from spequant.networks import EMBEDDINGS, LEFT_FLOAT, QUANTIZABLE, TRANSPOSED, copied
from spequant.preparation.adapters import adapt, makes_constants, restore
from spequant.preparation.adapters.encoder import Addition
from spequant.preparation.additions import find_additions
from spequant.preparation.sharing import Reader, readers_together
from spequant.quantizers import LeastSquares, Quantizer
from spequant.quantizers.pruned import tell_lost_zeros

Choice = Quantizer | int | None
"""A quantizer to copy; or bits for the model's own kind of quantizer; or None, float."""
Override = int | tuple[Choice, Choice] | None
"""Bits of weight and activation; or a choice for each, (weight, act); or None, both float."""


def prepare(
    model: nn.Module,
    *,
    weight: Quantizer | None,
    act: Quantizer | None,
    depthwise: Quantizer | None = None,
    ends: Override = 8,
    embeddings: Choice = 8,
    residual: Choice = 8,
    products: Choice = None,
    overrides: Mapping[str, Override] | None = None,
    skip: Sequence[str] = (),
    per_channel: bool = False,
) -> nn.Module:
    """A copy of `model` whose Linear, Conv1d/2d/3d and ConvTranspose1d/2d/3d layers quantize their weights and inputs,
    and whose embeddings their weights.

    weight, act: a quantizer of the wanted kind and bits, copied for each layer; None leaves all weights, or all
      activations, float.
    depthwise: the weight quantizer of depthwise convolutions (groups = input channels > 1), which always have one range
      a channel, of nine weights as a rule. None: `weight`, or where its ranges need many values (SAWB), LeastSquares on
      the same levels.
    ends: of the first and the last layer in the model's order: bits, a (weight, act) pair, or None (float). Where an
      embedding comes first, of the last one alone.
    embeddings: of their tables; bits, a quantizer of weights, or None (float). Float where `weight` is None.
    residual: of the addends of residual additions; bits, an activation quantizer, or None. Float where `act` is None.
      Those that the network marks (modules with the attribute `residual_addition = True` and `forward(branch,
      shortcut)`); where it marks none, those found by tracing it, whose addends are quantized by the modules that
      return them. A network that cannot be traced is told by a warning.
    products: of both sides of attention's products q k and p v; bits, an activation quantizer, or None (float). Of the
      attention modules known to `spequant.preparation.adapters` and of those marked in the network (modules with the
      attribute `attention_product = True` and `forward(left, right)`).
    overrides: {pattern of layer names: bits, (weight, act) pair or None}; the last match wins, over `ends` and
      `depthwise` too. Patterns are those of the shell: "layer1.*".
    skip: patterns of layers that stay as they are, and of modules that do so anyway with a warning (recurrent ones,
      nn.Bilinear, nn.EmbeddingBag); the ends are the first and last of the others.
    per_channel: one weight range an output channel, of embeddings a row, in place of one a layer.

    The model given is left as it is. Layers with one weight share its quantizer, and so do layers that read one tensor
    at the same bits, as far as the network can be traced (and in transformers' attention). The result has to be
    calibrated before it runs. ValueError: a pattern that matches no layer, nothing to quantize, bits out of range, a
    model that is prepared already, products that the model does not have. UserWarning: what stays float though it has
    weights, additions that cannot be looked for, pruned weights that would come back.
    """
    _check_arguments(model, weight, act, depthwise, skip)
    model, layers = _adapted(model, [*(overrides or {})], skip, products is not None)
    kinds = _weight_kinds(layers, weight, depthwise)
    choices: dict[str, Override] = {n: (kind, act) for n, kind in kinds.items()}
    choices |= _exceptions(layers, ends, embeddings, overrides or {})
    made = _quantized_layers(layers, choices, kinds, act, per_channel)
    of_two, outputs = _quantized_activations(model, residual, products, act)
    if not (made := made | of_two):
        raise ValueError("nothing to quantize: ends and overrides leave every layer float; give one of them bits")
    together = [] if act is None else readers_together(model)
    model = replace_modules(model, made)
    for name, quantizer in outputs.items():
        quantize_output(model.get_submodule(name), quantizer)
    _share(model, together)
    _place_quantizers(model, next(iter(layers.values())).weight.device)  # type: ignore[arg-type]
    return model


def _place_quantizers(model: nn.Module, device: torch.device) -> None:
    """Move them to where their layer's weight is; those of additions and products to `device`."""
    for module in model.modules():
        place = module.float_weight.device if isinstance(module, QuantizedLayer) else device
        for child in module.children():
            if isinstance(child, Quantizer):
                child.to(place)


def unprepare(model: nn.Module) -> nn.Module:
    """A copy of a prepared `model` with its plain float layers back, weights as trained. ValueError if not prepared."""
    model = without_quantizers(model)
    restore(model)
    return model


def without_quantizers(model: nn.Module) -> nn.Module:
    """The same, but for adapted modules (`spequant.preparation.adapters`), which stay adapted."""
    model = copied(model)
    made: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        if OUTPUT in module._modules:
            leave_output(module)
        if isinstance(module, QuantizedLayer):
            made[id(module)] = module.layer
        elif isinstance(module, QuantizedAdd):
            made[id(module)] = module.add
        elif isinstance(module, QuantizedProduct):
            made[id(module)] = module.product
    if not made:
        raise ValueError("model is not prepared: it holds no quantized layer")
    return replace_modules(model, made)


def _share(model: nn.Module, together: Sequence[Sequence[Reader]]) -> None:
    """Let those that read the same tensor, by equal quantizers, have one: that of the first in the model's order."""
    groups = {reader: number for number, readers in enumerate(together) for reader in readers}
    first: dict[str, Quantizer] = {}
    for name, module, attribute in act_slots(model):
        reader = name, module.ACTS.index(attribute) if isinstance(module, Wrapper) and attribute in module.ACTS else -1
        if reader in groups:
            own = getattr(module, attribute)
            kind = f"{groups[reader]} {type(own)} {sorted(own.config().items(), key=str)}"
            setattr(module, attribute, first.setdefault(kind, own))


def _adapted(
    model: nn.Module, patterns: Sequence[str], skip: Sequence[str], products: bool
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """(a copy of `model` whose modules call their layers, the layers by name that can be quantized, `skip` aside)."""
    _check_weights({n: m for n, m in _layers(model).items() if not _matches(n, skip)})
    model = copied(model)
    adapt(model, products=products)
    layers = _layers(model)
    others = {n: m for n, m in model.named_modules() if isinstance(m, LEFT_FLOAT)}
    _check_patterns([*skip, *patterns], layers, others)
    told = [f"{n} ({type(m).__name__})" for n, m in others.items() if not _matches(n, skip)]
    if told:
        warnings.warn(
            f"modules whose weights are not quantized and stay float: {some_of(told)}. Name them in skip to say that "
            "this is meant",
            stacklevel=3,
        )
    layers = {n: m for n, m in layers.items() if not _matches(n, skip)}
    if not layers:
        raise ValueError("nothing to quantize: the model has no Linear, convolution or embedding outside skip")
    return model, layers


def _layers(model: nn.Module) -> dict[str, nn.Module]:
    """What can be quantized in `model`, by name; layers that make a table of positions aside."""
    kinds = QUANTIZABLE + EMBEDDINGS
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds) and not makes_constants(model, n)}


def _exceptions(
    layers: Mapping[str, nn.Module], ends: Override, embeddings: Choice, overrides: Mapping[str, Override]
) -> dict[str, Override]:
    """What was chosen for single layers, the ends and embeddings among them."""
    tables = {n for n, m in layers.items() if isinstance(m, EMBEDDINGS)}
    others = [n for n in layers if n not in tables]
    chosen: dict[str, Override] = dict.fromkeys(others[-1:], ends)
    if next(iter(layers)) not in tables:
        chosen[others[0]] = ends
    chosen |= {n: (embeddings, None) for n in tables}
    for pattern, override in overrides.items():
        for name in (n for n in layers if fnmatchcase(n, pattern)):
            chosen[name] = (override, None) if name in tables and not isinstance(override, tuple) else override
    for name in tables:
        choice = chosen[name]
        if isinstance(choice, tuple) and len(choice) == 2 and choice[1] is not None:
            raise ValueError(
                f"{name}: {choice!r} was given for an embedding, which reads indices; expected bits of its weight, "
                "(weight, None), or None"
            )
    return chosen


def _weight_kinds(
    layers: Mapping[str, nn.Module], weight: Quantizer | None, depthwise: Quantizer | None
) -> dict[str, Quantizer | None]:
    """{layer: the kind of quantizer of its weight}."""
    if depthwise is None:
        depthwise = weight if weight is None or weight.fits_few else LeastSquares(weight.bits, zero=False)
    elif not any(_is_depthwise(layer) for layer in layers.values()):
        raise ValueError(f"depthwise is {depthwise!r}, but no layer outside skip is a depthwise convolution")
    return {name: depthwise if _is_depthwise(layer) else weight for name, layer in layers.items()}


def _is_depthwise(layer: nn.Module) -> bool:
    return getattr(layer, "groups", 1) == getattr(layer, "in_channels", 0) > 1


def _quantized_layers(
    layers: Mapping[str, nn.Module],
    choices: Mapping[str, Override],
    weights: Mapping[str, Quantizer | None],
    act: Quantizer | None,
    per_channel: bool,
) -> dict[int, QuantizedLayer]:
    """{id of the float layer: its quantized layer}, of those that any quantizer was chosen for."""
    made: dict[int, QuantizedLayer] = {}
    by_weight: dict[int, Quantizer] = {}
    for name, layer in layers.items():
        choice = choices[name]
        if isinstance(choice, Quantizer):
            raise ValueError(f"{name}: {choice!r} alone does not say whether it is for weight or act; give a pair")
        pair = choice if isinstance(choice, tuple) else (choice, choice)
        if len(pair) != 2:
            raise ValueError(f"{name}: {choice!r} was given; expected bits, a pair (weight, act), or None")
        shape = _range_shape(layer) if per_channel or _is_depthwise(layer) else ()
        w = _make(pair[0], weights[name], name, of_weight=True, shape=shape)
        a = _make(pair[1], act, name, of_weight=False, shape=())
        if w is not None:
            first = by_weight.setdefault(id(layer.weight), w)
            if first.config() != w.config():
                raise ValueError(
                    f"{first.name} and {name} have one weight, but it was to be quantized by {first!r} and by {w!r}; "
                    "give both the same with overrides (first and last layer have 8 bits by themselves: see ends)"
                )
            w = first
            w.padding = getattr(layer, "padding_idx", w.padding)
        if w is not None or a is not None:
            made[id(layer)] = QuantizedLayer(layer, w, a)
    tell_lost_zeros((m.weight_quantizer, m.float_weight) for m in made.values())
    return made


def _quantized_activations(
    model: nn.Module, residual: Choice, products: Choice, act: Quantizer | None
) -> tuple[dict[int, nn.Module], dict[str, Quantizer]]:
    """({id of a module of two activations: its quantized one}, {name of a module: the quantizer of its output})."""
    if act is None:
        return {}, {}
    adds = _quantized_pairs(model, "residual_addition", residual, act)
    marks = [q for q in adds.values() if type(q.add) is not Addition]  # the network's own
    outputs = {} if marks else _quantized_outputs(model, residual, act)
    return adds | _quantized_pairs(model, "attention_product", products, act), outputs


PAIRS = {
    "residual_addition": (QuantizedAdd, "branch", "shortcut"),
    "attention_product": (QuantizedProduct, "left", "right"),
}


def _quantized_pairs(model: nn.Module, mark: str, choice: Choice, act: Quantizer) -> dict[int, nn.Module]:
    """{id of the module that bears `mark`: its quantized one}, of two activations."""
    made: dict[int, nn.Module] = {}
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
            made[id(module)] = kind(module, first, second)
    return made


def _quantized_outputs(model: nn.Module, residual: Choice, act: Quantizer) -> dict[str, Quantizer]:
    """{name of a module whose output is an addend of an unmarked addition: its quantizer}."""
    if residual is None:
        return {}
    try:
        found = find_additions(model).found
    except ValueError as error:
        warnings.warn(
            f"residual additions of {type(model).__name__} stay float: it cannot be traced ({error}). Mark them in the "
            "network (modules with residual_addition = True), or say residual=None",
            stacklevel=4,
        )
        return {}
    names = dict.fromkeys(name for pair in found for name in pair)
    quantizers = {n: _make(residual, act, f"{n}.output", of_weight=False, shape=()) for n in names}
    return {name: q for name, q in quantizers.items() if q is not None}


def _make(choice: Choice, template: Quantizer | None, name: str, *, of_weight: bool, shape: tuple[int, ...]):
    """The quantizer of one tensor, or None."""
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


def _range_shape(layer: nn.Module) -> tuple[int, ...]:
    """Shape of one range an output channel, broadcastable against the layer's weight."""
    weight: Tensor = layer.weight  # type: ignore[assignment]
    transposed = isinstance(layer, TRANSPOSED)
    if transposed and layer.groups > 1 and not _is_depthwise(layer):
        raise ValueError(
            f"per_channel is True, but {layer!r} has the output channels of its {layer.groups} groups in one axis; "
            "prepare without per_channel, or leave this layer float with skip"
        )
    axis = 1 if transposed and not _is_depthwise(layer) else 0
    return tuple(size if d == axis else 1 for d, size in enumerate(weight.shape))


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def _check_patterns(patterns: Sequence[str], layers: Mapping[str, nn.Module], others: Mapping[str, nn.Module]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*layers, *others)):
            raise ValueError(
                f"pattern {pattern!r} matches no layer; layers that can be quantized: {', '.join(layers) or 'none'}"
            )


def _check_arguments(model: nn.Module, weight: object, act: object, depthwise: object, skip: Sequence[str]) -> None:
    if isinstance(skip, str):
        raise ValueError(f"skip is {skip!r}; expected a list of patterns, e.g. skip=[{skip!r}]")
    if any(isinstance(m, QuantizedLayer | QuantizedAdd | QuantizedProduct) for m in model.modules()):
        raise ValueError("model is prepared already; unprepare it first, or prepare the float model")
    for argument, template in (("weight", weight), ("act", act), ("depthwise", depthwise)):
        if template is not None and not isinstance(template, Quantizer):
            raise ValueError(f"{argument} is {template!r}; expected a quantizer such as PACT(2), or None")
    if weight is None and act is None:
        raise ValueError("nothing to quantize: weight and act are both None")
    if depthwise is not None and weight is None:
        raise ValueError(f"depthwise is {depthwise!r}, but weight is None, which leaves all weights float")


def _check_weights(layers: Mapping[str, nn.Module]) -> None:
    """A weight that the layer computes anew at each forward, or has not yet, cannot pass a quantizer."""
    for name, layer in layers.items():
        weight = layer._parameters.get("weight")
        if weight is None:
            raise ValueError(
                f"{name}: its weight is computed from others (weight_norm, spectral_norm or another parametrization); "
                "remove that first (torch.nn.utils.parametrize.remove_parametrizations), or leave the layer float: skip"
            )
        if isinstance(weight, UninitializedParameter):
            raise ValueError(f"{name}: its weight has no shape yet; run the model once before prepare, or use skip")
        if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.sparse):
            what = "max_norm, which writes to its weight as it runs" if not layer.sparse else "sparse gradients"
            raise ValueError(f"{name} is an embedding with {what}; leave it float: skip=[{name!r}]")


def replace_modules(model: nn.Module, made: Mapping[int, nn.Module]) -> nn.Module:
    """Put `made[id(m)]` where m stood, at every place that holds it; the model itself may be such a place."""
    if id(model) in made:
        return made[id(model)]
    for parent in list(model.modules()):
        if isinstance(parent, QuantizedLayer | QuantizedAdd | QuantizedProduct) and id(parent) not in made:
            continue
        for name, child in list(parent._modules.items()):  # named_children leaves out a module's second place
            if id(child) in made:
                setattr(parent, name, made[id(child)])
    return model
