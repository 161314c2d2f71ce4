"""`prepare` and `unprepare`: they replace modules of a copy of the user's network, and nothing else does.

Which quantizer a tensor gets is decided in `choices.py`. Layers with one weight share its quantizer. Layers that read
one tensor at the same bits share a quantizer as well, as far as the network can be traced (`sharing.py`).

A network may mark modules with two inputs: `residual_addition = True` on modules with `forward(branch, shortcut)`, and
`attention_product = True` on modules with `forward(left, right)`; `prepare` then quantizes both inputs. Where a network
marks no residual addition, `prepare` looks for additions by tracing; the modules that return the addends then quantize
their outputs. The attention modules of `adapters/` mark their products themselves.
"""

import warnings
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import UninitializedParameter

from spequant.layers import (
    HOOKS,
    HOOKS_BEFORE,
    OUTPUT,
    QuantizedLayer,
    Wrapper,
    act_slots,
    inner_module,
    leave_output,
    move_hooks,
    quantize_output,
)
from spequant.names import some_of
from spequant.networks import EMBEDDINGS, LEFT_FLOAT, QUANTIZABLE, copied
from spequant.preparation.adapters import adapt, makes_constants, restore
from spequant.preparation.choices import (
    LayerChoices,
    Override,
    QuantizerChoice,
    quantized_activations,
    quantized_layers,
)
from spequant.preparation.sharing import Reader, readers_together
from spequant.quantizers import Quantizer
from spequant.quantizers.base import check_bits


def prepare(
    model: nn.Module,
    *,
    weight: Quantizer | None,
    act: Quantizer | None,
    depthwise: Quantizer | None = None,
    ends: Override = 8,
    embeddings: QuantizerChoice = 8,
    residual: QuantizerChoice = 8,
    products: QuantizerChoice = None,
    between: QuantizerChoice = None,
    overrides: Mapping[str, Override] | None = None,
    skip: Sequence[str] = (),
    per_channel: bool = False,
) -> nn.Module:
    """Return a copy of `model` whose layers quantize their weights and inputs; it has to be calibrated before it runs.

    Linear, Conv1d/2d/3d and ConvTranspose1d/2d/3d layers quantize both, embeddings only their weights.

    Args:
        model: A float network; it is left as it is.
        weight: A quantizer of the kind and bits that weights get, copied for each layer; None: all weights are float.
        act: The same for inputs of layers; None: all activations are float.
        depthwise: The same for weights of depthwise convolutions (groups = input channels > 1), which always have one
            range per channel, as a rule over nine weights. None: `weight`, or where its ranges need many values (SAWB)
            LeastSquares on the same levels.
        ends: Bits, (weight, act) or None (float) for the first and the last layer outside `skip`, in the model's order;
            only for the last one if an embedding comes first.
        embeddings: Bits, a quantizer or None (float) for the weights of embeddings. Float if `weight` is None.
        residual: Bits, a quantizer or None (float) for addends of residual additions. Float if `act` is None.
        products: Bits, a quantizer or None (float) for both factors of attention's products q k and p v.
        between: Bits, a quantizer or None (float) for what stands between layers: what goes into activation functions
            other than ReLU and its kin, factors of products, inputs of means and of batch norm that follows no layer,
            tensors that are concatenated again (one range together). With it, exports compute these on integers.
        overrides: {pattern of layer names, as in a shell ("layer1.*"): bits, (weight, act) or None}. The last match
            counts, also against `ends` and `depthwise`.
        skip: Patterns of layers to leave float. Modules that are left float in any case, with a warning (recurrent
            ones, nn.Bilinear, nn.EmbeddingBag), are left so without one if a pattern matches.
        per_channel: Weights get one range per output channel, embeddings one per row, instead of one per layer.

    Raises:
        ValueError: A pattern matches no layer, nothing is left to quantize, bits are out of range, `model` is prepared
            already, or it has no products although `products` is given.

    Warns:
        UserWarning: Modules with weights stay float, a network cannot be traced, or pruned weights would come back.
    """
    choices = LayerChoices(weight, act, depthwise, ends, embeddings, overrides or {}, per_channel)
    _check_arguments(model, choices, skip, {"residual": residual, "products": products, "between": between})
    model, layers = _adapted_copy(model, [*choices.overrides], skip, products is not None)
    wrappers: dict[int, nn.Module] = {**quantized_layers(layers, choices)}
    pairs, outputs = quantized_activations(model, residual, products, between, act)
    wrappers |= pairs
    if not wrappers:
        raise ValueError("nothing to quantize: ends and overrides leave every layer float; give one of them bits")
    groups = [] if act is None else readers_together(model)
    model = insert(model, wrappers, outputs)
    _share_quantizers(model, groups)
    move_quantizers(model, next(iter(layers.values())).weight.device)  # type: ignore[arg-type]
    return model


def unprepare(model: nn.Module) -> nn.Module:
    """Return a float copy of a prepared `model`, with plain layers and the weights as trained.

    Args:
        model: What `prepare` returned, calibrated or trained or not.

    Raises:
        ValueError: `model` is not prepared.
    """
    model = without_quantizers(model)
    restore(model)
    return model


def without_quantizers(model: nn.Module, *, share: bool = False) -> nn.Module:
    """Return what `unprepare` returns, except that adapted modules (`spequant.preparation.adapters`) stay adapted.

    Args:
        model: What `prepare` returned.
        share: Whether the result has the parameters and buffers of `model` itself instead of copies.
    """
    model = copied(model, share=share)
    for key in [k for k, wrapped in model._load_state_dict_pre_hooks.items() if wrapped.hook is check_states]:
        del model._load_state_dict_pre_hooks[key]
    replacements: dict[int, nn.Module] = {}
    for module in list(model.modules()):
        if OUTPUT in module._modules:
            leave_output(module)
        if isinstance(module, Wrapper):
            inner = replacements[id(module)] = inner_module(module)
            move_hooks(module, inner, HOOKS)
    if not replacements:
        raise ValueError("model is not prepared: it holds no quantized layer")
    return replace_modules(model, replacements)


def insert(model: nn.Module, wrappers: Mapping[int, nn.Module], outputs: Mapping[str, Quantizer]) -> nn.Module:
    """Put quantizers into `model`, in place.

    Args:
        model: A float network.
        wrappers: {id of a module: the quantized module around it}.
        outputs: {name of a module: the quantizer of its output}.

    Returns:
        `model`, or what replaces `model` itself.
    """
    model = replace_modules(model, wrappers)
    for wrapper in wrappers.values():
        assert isinstance(wrapper, Wrapper)
        move_hooks(inner_module(wrapper), wrapper, HOOKS_BEFORE)  # what a hook makes of an input is quantized, too
    for name, quantizer in outputs.items():
        quantize_output(model.get_submodule(name), quantizer)
    model.register_load_state_dict_pre_hook(check_states)
    return model


def check_states(model: nn.Module, state_dict: Mapping[str, Any], prefix: str, *others: Any) -> None:
    """Hook of `load_state_dict`: refuse a state of other quantizers before the first of its tensors is loaded."""
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            module.check_state(state_dict, f"{prefix}{name}.")


def replace_modules(model: nn.Module, replacements: Mapping[int, nn.Module]) -> nn.Module:
    """Replace modules of `model`, in place, everywhere that they occur.

    Args:
        model: Any network. A quantized module that is not replaced itself is left as it is.
        replacements: {id of a module: the module that takes its place}.

    Returns:
        `model`, or what replaces `model` itself.
    """
    if id(model) in replacements:
        return replacements[id(model)]
    for parent in list(model.modules()):
        if isinstance(parent, Wrapper) and id(parent) not in replacements:
            continue
        for name, child in list(parent._modules.items()):  # named_children omits a module that occurs a second time
            if id(child) in replacements:
                setattr(parent, name, replacements[id(child)])
    return model


def _adapted_copy(
    model: nn.Module, patterns: Sequence[str], skip: Sequence[str], products: bool
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Return a copy of `model` whose modules call their layers, and the layers to quantize by name, without `skip`."""
    _check_weights({n: m for n, m in _quantizable_layers(model).items() if not _matches(n, skip)})
    model = copied(model)
    shared = _shared_parameters(model)
    adapt(model, products=products)
    _check_shared(shared)
    layers = _quantizable_layers(model)
    others = {n: m for n, m in model.named_modules() if isinstance(m, LEFT_FLOAT)}
    _check_patterns([*skip, *patterns], layers, others)
    left_float = [f"{n} ({type(m).__name__})" for n, m in others.items() if not _matches(n, skip)]
    if left_float:
        warnings.warn(
            f"modules whose weights are not quantized and stay float: {some_of(left_float)}. Name them in skip to say "
            "that this is meant",
            stacklevel=3,  # the call of `prepare`
        )
    layers = {n: m for n, m in layers.items() if not _matches(n, skip)}
    if not layers:
        raise ValueError("nothing to quantize: the model has no Linear, convolution or embedding outside skip")
    return model, layers


Places = dict[str, tuple[nn.Module, str]]
"""Where a model holds a parameter: {name in the model: (module, attribute)}."""


def _shared_parameters(model: nn.Module) -> list[Places]:
    """Return the places of each parameter of `model` that several modules hold."""
    places: dict[int, Places] = {}
    for name, module in model.named_modules():
        for attribute, parameter in module._parameters.items():
            if parameter is not None:
                places.setdefault(id(parameter), {})[f"{name}.{attribute}"] = module, attribute
    return [group for group in places.values() if len(group) > 1]


def _check_shared(shared: Sequence[Places]) -> None:
    """Refuse parameters that adapting has replaced in a module, where other modules hold them, too."""
    for group in shared:
        if len({id(module._parameters.get(attribute)) for module, attribute in group.values()}) > 1 or any(
            module._parameters.get(attribute) is None for module, attribute in group.values()
        ):
            raise ValueError(
                f"{' and '.join(group)} are one tensor, which would become several: attention with a joint weight is "
                "split into layers; give each module a weight of its own in the float network"
            )


def _quantizable_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers of `model` that can be quantized, by name, without layers that make a table of positions."""
    kinds = QUANTIZABLE + EMBEDDINGS
    return {n: m for n, m in model.named_modules() if isinstance(m, kinds) and not makes_constants(model, n)}


def _share_quantizers(model: nn.Module, groups: Sequence[Sequence[Reader]]) -> None:
    """Give readers of one tensor that have equal quantizers the quantizer of the first of them in the model's order."""
    group_of = {reader: number for number, readers in enumerate(groups) for reader in readers}
    first: dict[str, Quantizer] = {}
    for name, module, attribute in act_slots(model):
        reader = name, module.ACTS.index(attribute) if isinstance(module, Wrapper) and attribute in module.ACTS else -1
        if reader in group_of:
            quantizer = getattr(module, attribute)
            settings = f"{group_of[reader]} {type(quantizer)} {sorted(quantizer.config().items(), key=str)}"
            setattr(module, attribute, first.setdefault(settings, quantizer))


def move_quantizers(model: nn.Module, device: torch.device) -> None:
    """Move quantizers of layers to the device of their layer's weight, and the others to `device`."""
    for module in model.modules():
        place = module.float_weight.device if isinstance(module, QuantizedLayer) else device
        for child in module.children():
            if isinstance(child, Quantizer):
                child.to(place)


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, p) for p in patterns)


def _check_patterns(patterns: Sequence[str], layers: Mapping[str, nn.Module], others: Mapping[str, nn.Module]) -> None:
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in (*layers, *others)):
            raise ValueError(
                f"pattern {pattern!r} matches no layer; layers that can be quantized: {', '.join(layers) or 'none'}"
            )


def _check_arguments(
    model: nn.Module, choices: LayerChoices, skip: Sequence[str], others: Mapping[str, QuantizerChoice]
) -> None:
    if isinstance(skip, str):
        raise ValueError(f"skip is {skip!r}; expected a list of patterns, e.g. skip=[{skip!r}]")
    if any(isinstance(m, Wrapper) for m in model.modules()):
        raise ValueError("model is prepared already; unprepare it first, or prepare the float model")
    for argument in ("weight", "act", "depthwise"):
        template = getattr(choices, argument)
        if template is not None and not isinstance(template, Quantizer):
            raise ValueError(f"{argument} is {template!r}; expected a quantizer such as PACT(2), or None")
    for argument, value in {"embeddings": choices.embeddings, **others}.items():
        if not isinstance(value, Quantizer):
            check_bits(value, f"{argument}: bits", or_float=True)
    if not isinstance(choices.overrides, Mapping):
        raise ValueError(f"overrides is {choices.overrides!r}; expected a mapping, e.g. {{'layer1.*': 4}}")
    named = {"ends": choices.ends, **{f"overrides[{pattern!r}]": v for pattern, v in choices.overrides.items()}}
    for argument, override in named.items():
        for value in override if isinstance(override, tuple) else (override,):
            if not isinstance(value, Quantizer):
                check_bits(value, f"{argument}: bits", or_float=True)
    if choices.weight is None and choices.act is None:
        raise ValueError("nothing to quantize: weight and act are both None")
    if choices.depthwise is not None and choices.weight is None:
        raise ValueError(f"depthwise is {choices.depthwise!r}, but weight is None, which leaves all weights float")


def _check_weights(layers: Mapping[str, nn.Module]) -> None:
    """Refuse weights that cannot pass a quantizer: computed anew in each forward, or without a shape yet."""
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
