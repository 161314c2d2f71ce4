"""A float layer on quantized weight and input."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from spequant.layers.sealed_weight import SealedWeight, refuse_weight
from spequant.layers.wrapper import Wrapper
from spequant.networks import TRANSPOSED
from spequant.quantizers.base import Quantizer

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, *TRANSPOSED)


class QuantizedLayer(Wrapper):
    """A float layer that computes with its weight and its input quantized.

    Args:
        layer: of `QUANTIZABLE` or `EMBEDDINGS`, or a subclass with its own forward. A subclass that does not compute
            with its weight as it is, but for example with a standardised one, needs two methods, so that the weight
            that is quantized is the one that it computes with: `effective_weight()` and `run_with(input, weight)`.
        weight_quantizer: None leaves the weight float.
        act_quantizer: quantizer of the input; None leaves the input float.

    Raises:
        RuntimeError: in forward, if the weight is no longer a plain parameter of `layer`, or a hook writes it.
    """

    INNER = "layer"
    ACTS = ("act_quantizer",)

    def __init__(self, layer: nn.Module, weight_quantizer: Quantizer | None, act_quantizer: Quantizer | None):
        super().__init__()
        self.layer = layer
        self.weight_quantizer = weight_quantizer
        self.act_quantizer = act_quantizer

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        modules: dict[str, Any] = self._modules  # torch.compile would trace `__getattr__` three times per attribute
        layer, act_quantizer = modules["layer"], modules.get("act_quantizer")
        weight_quantizer = modules.get("weight_quantizer")
        if act_quantizer is not None:
            input = act_quantizer(input)
        if weight_quantizer is None:
            return layer(input, *args, **kwargs)
        _check_weight(layer, weight_quantizer.name)
        return run_with(layer, weight_quantizer(effective_weight(layer)), input, *args, **kwargs)

    @property
    def float_weight(self) -> Tensor:
        """The float weight that is quantized: `effective_weight(layer)`."""
        return effective_weight(self.layer)

    def __getattr__(self, name: str) -> Any:
        """Return the weight as a `SealedWeight`, and other attributes as `Wrapper` does."""
        if name == "weight":
            layer: Any = self.layer
            return SealedWeight(layer.weight, self._name())
        return super().__getattr__(name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            self._set_weight(value)
        else:
            super().__setattr__(name, value)

    def _set_weight(self, value: Any) -> None:
        layer: Any = self.layer
        if isinstance(value, SealedWeight):
            if value._weight is not layer.weight:
                raise ValueError(
                    f"{self._name()}: its weight was set to that of {value._layer_name}, which has another quantizer; "
                    "tie the weights in the float model, then prepare: layers with one weight share its quantizer"
                )
        elif not isinstance(value, nn.Parameter) or value.shape != layer.weight.shape:
            refuse_weight(self._name(), layer.weight, value)
        else:
            layer.weight = value

    def _name(self) -> str:
        quantizer = self.weight_quantizer or self.act_quantizer
        return quantizer.name if quantizer is not None else "this layer"


def run_with(layer: nn.Module, weight: Tensor, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """Return `layer(input, *args, **kwargs)` computed with `weight` in place of the layer's own weight.

    The layer is only read, so that several threads may run it at once. Its hooks run, unless the layer has its own
    `run_with`; they see a module that shares everything with the layer except the weight.

    Args:
        layer: a float layer.
        weight: of the shape of the layer's weight.
        input, args, kwargs: arguments of the layer's forward.

    Raises:
        RuntimeError: a hook writes the weight.
    """
    if torch.is_autocast_enabled("cpu") and input.device.type == "cpu" and _is_slow_in_bf16(layer):
        with torch.autocast("cpu", enabled=False):
            output = run_with(layer, weight.float(), input.float(), *args, **kwargs)
        return output.to(torch.get_autocast_dtype("cpu"))
    if hasattr(layer, "run_with"):
        return layer.run_with(input, weight)  # type: ignore[operator]
    if torch.compiler.is_compiling():  # there the parameter is only swapped in the graph
        plain: Any = layer
        if not torch.compiler.is_exporting() and not _hooked(layer):  # an exported graph is to name the layer
            if type(layer) is nn.Linear:  # as in its own forward; traced in a tenth of the time
                return F.linear(input, weight, plain.bias)
            if type(layer) is nn.Conv2d:
                return plain._conv_forward(input, weight, plain.bias)
        return functional_call(layer, {"weight": weight}, (input, *args), kwargs)
    twin = _with_weight(layer, weight)
    version = None if weight.is_inference() else weight._version
    output = twin(input, *args, **kwargs)
    same = twin._parameters.get("weight") is weight and "weight" not in vars(twin)
    if not same or (version is not None and weight._version != version):
        raise RuntimeError(
            f"a hook of {layer!r} writes its weight as it runs, past the quantizer; remove the hook, or leave the "
            "layer float: prepare(..., skip=[...])"
        )
    return output


def _is_slow_in_bf16(layer: nn.Module) -> bool:
    """Return whether `layer` is a depthwise convolution, transposed or not, with strides, of more than 3 x 3 weights,
    or with several results a channel. On a CPU the backward pass of these, of transposed ones the forward too, takes
    2 to 60 times as long in bf16 as in fp32 (benchmarks/2026-12-01-amx.md).
    """
    if not isinstance(layer, CONVOLUTIONS) or not 1 < layer.groups == layer.in_channels:
        return False
    return max(layer.stride) > 1 or max(layer.kernel_size) > 3 or layer.out_channels > layer.in_channels


def _hooked(layer: nn.Module) -> bool:
    """Return whether something else runs when `layer` is called: a hook before or after, forward or backward."""
    before, after = layer._forward_pre_hooks, layer._forward_hooks
    return bool(before or after or layer._backward_pre_hooks or layer._backward_hooks)


def effective_weight(layer: nn.Module) -> Tensor:
    """Return the weight that `layer` computes with: the result of its method `effective_weight`, or its weight."""
    module: Any = layer
    return module.effective_weight() if hasattr(layer, "effective_weight") else module.weight


def _with_weight(layer: nn.Module, weight: Tensor) -> nn.Module:
    """Return a module that shares everything with `layer` except its weight, which is `weight`."""
    twin = object.__new__(type(layer))
    vars(twin).update(vars(layer))
    vars(twin).pop("weight", None)  # a replica of DataParallel keeps its weight there
    vars(twin)["_parameters"] = {**layer._parameters, "weight": weight}
    return twin


def _check_weight(layer: nn.Module, name: str) -> None:
    """Raise a RuntimeError if `layer` now computes its weight before each forward, which would bypass the quantizer."""
    # Replicas of DataParallel keep their weights in _former_parameters.
    if "weight" not in layer._parameters and "weight" not in vars(layer).get("_former_parameters", ()):
        raise RuntimeError(
            f"{name}: its weight is computed from other tensors since prepare (pruning, weight or spectral norm, a "
            f"parametrization, an adapter such as LoRA: the layer is now a {type(layer).__name__}), which would bypass "
            "its quantizer; make it a plain parameter again (prune.remove, remove_parametrizations, merge_and_unload), "
            "or change the float model and prepare that"
        )
    if "FSDPModule" in [kind.__name__ for kind in type(layer).__mro__]:
        raise RuntimeError(
            f"{name}: fully_shard was called on the float layer inside the quantized one, whose weight is whole only "
            "after the quantizer has read it; call it on the quantized layer, on blocks of them, or on the whole model"
        )
