"""Adapters for modules that read the weights of their layers without calling the layers.

Each file here adapts one kind of module, so that it calls its layers. An adapted module computes the same as before, in
float up to rounding, and its layers can be quantized like any others. A module that no file here knows keeps reading
`layer.weight`, which a quantized layer refuses with an error that names it.

A file has a function `adapt(module)`, which changes the class of the module in place. The new class has a method
`restore()`, which changes it back. Networks of transformers are adapted, too, so that they save their quantizers
(`pretrained.py`).
"""

import inspect
from collections.abc import Collection
from importlib import import_module
from typing import Any

from torch import nn

from spequant.names import some_of

ADAPTERS = {
    "torch.nn.modules.activation.MultiheadAttention": "multihead",
    "torch.nn.modules.transformer.TransformerEncoderLayer": "encoder",
    "torch.nn.modules.transformer.TransformerDecoderLayer": "encoder",
    "torchvision.models.swin_transformer.ShiftedWindowAttention": "swin",
    "torchvision.models.swin_transformer.ShiftedWindowAttentionV2": "swin",
    "timm.layers.std_conv.StdConv2d": "standardised",
    "timm.layers.std_conv.StdConv2dSame": "standardised",
    "timm.layers.std_conv.ScaledStdConv2d": "standardised",
    "timm.layers.std_conv.ScaledStdConv2dSame": "standardised",
    "transformers.models.bit.modeling_bit.WeightStandardizedConv2d": "bit",
    "transformers.pytorch_utils.Conv1D": "conv1d",
}
"""{class: the file here that adapts its instances}. Both are names, so that only libraries in use are imported."""

PRODUCT_ADAPTERS = {
    "timm.layers.attention.Attention": "vision_transformer",
    "timm.models.swin_transformer.WindowAttention": "vision_transformer",
}
"""The same for attention that calls its layers already, and needs adapting only to quantize its products."""

TRANSFORMERS_ATTENTION = "transformers_attention"
"""The file that adapts any attention which looks up, in transformers' register, the function that computes it."""

PRETRAINED_NETWORK, PRETRAINED = "transformers.modeling_utils.PreTrainedModel", "pretrained"
"""The base class of transformers' networks, and the file that adapts them."""

POSITION_TABLES = ("cpb_mlp", "rel_pos_mlp", "pos_proj", "token_projection")
"""Names of modules in networks of `LIBRARIES` whose layers compute a table of positions. The table is the same for
every input, so that those layers stay float."""
LIBRARIES = ("timm", "torchvision", "transformers")


def adapt(model: nn.Module, *, products: bool = False, only: Collection[str] | None = None) -> None:
    """Adapt, in place, every module of `model` that is known here.

    Args:
        model: A float network.
        products: Whether attention's products q k and p v become modules, so that they can be quantized, too.
        only: What `adapted` returned of another network: exactly these modules are adapted, with their products.

    Raises:
        ValueError: A module of `only` is not known here.
    """
    products = products or only is not None
    adapters = ADAPTERS | (PRODUCT_ADAPTERS if products else {})
    unknown = set(only or ())
    for name, module in list(model.named_modules()):
        if getattr(module, "qkv_bias_separate", None) is False:  # timm's BEiT, EVA and Swin V2 then call their layers
            setattr(module, "qkv_bias_separate", True)  # noqa: B010
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # its fast path reads the weights of all its layers
        if any(_name_of(kind) == PRETRAINED_NETWORK for kind in type(module).__mro__):
            _adapter(PRETRAINED).adapt(module)
        if only is not None and name not in only:
            continue
        if file := adapters.get(_name_of(type(module))):
            _adapter(file).adapt(module)
            unknown.discard(name)
        elif products and _looks_up_attention(module):
            _adapter(TRANSFORMERS_ATTENTION).adapt(module)
            unknown.discard(name)
    if unknown:
        raise ValueError(
            f"adapted has {some_of(sorted(unknown))}, which {type(model).__name__} has not, or which is of a class "
            "that is not known here: the description is of another network, or of another version of a library"
        )


def adapted(model: nn.Module) -> list[str]:
    """Return the names of the modules of `model`, a network without quantizers, that `restore` changes back."""
    return [name for name, module in model.named_modules() if _is_adapted(module)]


def restore(model: nn.Module) -> None:
    """Undo `adapt`, in place, with the weights as they are now.

    Args:
        model: A network without quantizers, adapted.
    """
    for module in list(model.modules()):
        if type(vars(module).get("hf_quantizer")).__module__ == f"{__name__}.{PRETRAINED}":
            _adapter(PRETRAINED).restore(module)
        if _is_adapted(module):
            undo = getattr(type(module), "restore", None) or _adapter(TRANSFORMERS_ATTENTION).restore
            undo(module)


def makes_constants(model: nn.Module, layer: str) -> bool:
    """Tell whether the layer of this name in `model` computes a table of positions (`POSITION_TABLES`)."""
    parts = layer.split(".")
    owners = (model.get_submodule(".".join(parts[:i])) for i, part in enumerate(parts) if part in POSITION_TABLES)
    return any(kind.__module__.partition(".")[0] in LIBRARIES for owner in owners for kind in type(owner).__mro__)


def _is_adapted(module: nn.Module) -> bool:
    has_class_of_ours = hasattr(type(module), "restore") and type(module).__module__.startswith(__name__)
    return has_class_of_ours or "attention_before" in vars(module)


def _name_of(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _looks_up_attention(module: nn.Module) -> bool:
    """Tell whether the forward of `module` leaves attention to the function that its configuration names."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())


def _adapter(name: str) -> Any:
    return import_module(f"{__name__}.{name}")
