"""Adapters for modules that read the weights of their layers without calling the layers.

Each file here adapts one kind of module, so that it calls its layers. An adapted module computes the same as before, in
float up to rounding, and its layers can be quantized like any others. A module that no file here knows keeps reading
`layer.weight`, which a quantized layer refuses with an error that names it.

A file has a function `adapt(module)`, which changes the class of the module in place. The new class has a method
`restore()`, which changes it back.
"""

import inspect
from importlib import import_module
from typing import Any

from torch import nn

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

POSITION_TABLES = ("cpb_mlp", "rel_pos_mlp", "pos_proj", "token_projection")
"""Names of modules in networks of `LIBRARIES` whose layers compute a table of positions. The table is the same for
every input, so that those layers stay float."""
LIBRARIES = ("timm", "torchvision", "transformers")


def adapt(model: nn.Module, *, products: bool = False) -> None:
    """Adapt, in place, every module of `model` that is known here.

    Args:
        model: A float network.
        products: Whether attention's products q k and p v become modules, so that they can be quantized, too.
    """
    adapters = ADAPTERS | (PRODUCT_ADAPTERS if products else {})
    for module in list(model.modules()):
        if getattr(module, "qkv_bias_separate", None) is False:  # timm's BEiT, EVA and Swin V2 then call their layers
            setattr(module, "qkv_bias_separate", True)  # noqa: B010
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # its fast path reads the weights of all its layers
        if name := adapters.get(_class_name(module)):
            _adapter(name).adapt(module)
        elif products and _looks_up_attention(module):
            _adapter(TRANSFORMERS_ATTENTION).adapt(module)


def restore(model: nn.Module) -> None:
    """Undo `adapt`, in place, with the weights as they are now.

    Args:
        model: A network without quantizers, adapted.
    """
    for module in list(model.modules()):
        if (undo := getattr(type(module), "restore", None)) and type(module).__module__.startswith(__name__):
            undo(module)
        elif "attention_before" in module.__dict__:
            _adapter(TRANSFORMERS_ATTENTION).restore(module)


def makes_constants(model: nn.Module, layer: str) -> bool:
    """Tell whether the layer of this name in `model` computes a table of positions (`POSITION_TABLES`)."""
    parts = layer.split(".")
    owners = (model.get_submodule(".".join(parts[:i])) for i, part in enumerate(parts) if part in POSITION_TABLES)
    return any(kind.__module__.partition(".")[0] in LIBRARIES for owner in owners for kind in type(owner).__mro__)


def _class_name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _looks_up_attention(module: nn.Module) -> bool:
    """Tell whether the forward of `module` leaves attention to the function that its configuration names."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())


def _adapter(name: str) -> Any:
    return import_module(f"{__name__}.{name}")
