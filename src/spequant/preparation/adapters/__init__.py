"""Modules that compute with their layers' weights past the layers' forward, taught to call the layers.

Each file here is about one kind of module. An adapted module computes what it did, in float to within rounding; its
layers can then be quantized like any other. Modules that are known nowhere here keep reading `layer.weight`, which a
quantized layer refuses by name.
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
"""{class: the file here that adapts its instances}; by name, so that no library is imported that is not in use."""

WITH_PRODUCTS = {
    "timm.layers.attention.Attention": "vision_transformer",
    "timm.models.swin_transformer.WindowAttention": "vision_transformer",
}
"""The same, of attention whose layers need no adapting, where its products are to be quantized."""

ATTENTION_OF_TRANSFORMERS = "transformers_attention"
"""The same, of any attention that asks transformers' register which function computes it."""

CONSTANT = ("cpb_mlp", "rel_pos_mlp", "pos_proj", "token_projection")
"""Names of modules, in networks of `LIBRARIES`, whose layers make a table of positions, the same for every input: they
stay float."""
LIBRARIES = ("timm", "torchvision", "transformers")


def adapt(model: nn.Module, *, products: bool = False) -> None:
    """Adapt, in place, every module of `model` that is known here; products: attention's q k and p v, too."""
    known = ADAPTERS | (WITH_PRODUCTS if products else {})
    for module in list(model.modules()):
        if getattr(module, "qkv_bias_separate", None) is False:  # timm's BEiT, EVA and Swin V2 offer it themselves
            setattr(module, "qkv_bias_separate", True)  # noqa: B010
        if isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False  # its fast path reads the weights of all its layers
        if name := known.get(_name(module)):
            _file(name).adapt(module)
        elif products and _asks_transformers(module):
            _file(ATTENTION_OF_TRANSFORMERS).adapt(module)


def restore(model: nn.Module) -> None:
    """Undo `adapt`, in place; weights as they are now."""
    for module in list(model.modules()):
        if (back := getattr(type(module), "restore", None)) and type(module).__module__.startswith(__name__):
            back(module)
        elif "attention_before" in module.__dict__:
            _file(ATTENTION_OF_TRANSFORMERS).restore(module)


def makes_constants(model: nn.Module, layer: str) -> bool:
    """Whether the layer of this name in `model` is one of `CONSTANT`."""
    parts = layer.split(".")
    owners = (model.get_submodule(".".join(parts[:i])) for i, part in enumerate(parts) if part in CONSTANT)
    return any(kind.__module__.partition(".")[0] in LIBRARIES for owner in owners for kind in type(owner).__mro__)


def _name(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def _asks_transformers(module: nn.Module) -> bool:
    """Whether its forward leaves attention to the function that its configuration names."""
    forward = inspect.unwrap(type(module).forward)
    return "ALL_ATTENTION_FUNCTIONS" in getattr(getattr(forward, "__code__", None), "co_names", ())


def _file(name: str) -> Any:
    return import_module(f"{__name__}.{name}")
