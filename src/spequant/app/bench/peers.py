"""Other toolkits' low-bit networks, for times beside ours: the same layers at the same bits, each in its own way."""

from collections.abc import Callable
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from spequant.preparation.placement import replace_modules

Make = Callable[[nn.Module, int, bool], nn.Module]
"""(convolution or linear layer, bits of weight and input, whether the input has negative values) -> low-bit layer"""


def low_bit(network: nn.Module, bits: int, layer: Make, addend: Callable[[], nn.Module]) -> nn.Module:
    """`network` with every convolution and linear layer made by `layer`, the first and the last at 8 bits, and every
    addend of a marked residual addition through an `addend()`."""
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    ends = layers[0], layers[-1]
    made = {id(m): layer(m, 8 if m in ends else bits, m is layers[0]) for m in layers}
    adds = [m for m in network.modules() if getattr(m, "residual_addition", False)]
    return replace_modules(network, made | {id(m): _Add(addend(), addend()) for m in adds}).train()


class _Add(nn.Module):
    def __init__(self, branch: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return self.branch(branch) + self.shortcut(shortcut)


def brevitas(network: nn.Module, bits: int) -> nn.Module:
    """Brevitas: QuantConv2d and QuantLinear, scales a tensor, those of activations learned from the second step on (by
    default it takes percentiles for 300 steps first, which are several times slower); `network` is changed.

    ModuleNotFoundError without the package.
    """
    qnn, quant = import_module("brevitas.nn"), import_module("brevitas.quant")

    def layer(m: nn.Module, width: int, signed: bool) -> nn.Module:
        settings: dict[str, Any] = {
            "weight_quant": quant.Int8WeightPerTensorFloat,
            "weight_bit_width": width,
            "input_quant": quant.Int8ActPerTensorFloat if signed else quant.Uint8ActPerTensorFloat,
            "input_bit_width": width,
            "input_collect_stats_steps": 1,
            "bias": m.bias is not None,
        }
        if isinstance(m, nn.Linear):
            made = qnn.QuantLinear(m.in_features, m.out_features, **settings)
        else:
            assert isinstance(m, nn.Conv2d)
            shape = {k: getattr(m, k) for k in ("kernel_size", "stride", "padding", "dilation", "groups")}
            made = qnn.QuantConv2d(m.in_channels, m.out_channels, **shape, **settings)
        made.load_state_dict(m.state_dict(), strict=False)
        return made

    def addend() -> nn.Module:
        return qnn.QuantIdentity(act_quant=quant.Int8ActPerTensorFloat, collect_stats_steps=1)

    return low_bit(network, bits, layer, addend)


def torch_ao(network: nn.Module, bits: int) -> nn.Module:
    """torch.ao.quantization: FakeQuantize with moving minima and maxima; `network` is changed.

    ModuleNotFoundError where this torch has it no more.
    """
    ao = import_module("torch.ao.quantization")

    def fake(low: int, high: int, dtype: torch.dtype, scheme: torch.qscheme) -> nn.Module:
        observer = ao.MovingAverageMinMaxObserver
        return ao.FakeQuantize(observer, quant_min=low, quant_max=high, dtype=dtype, qscheme=scheme)

    def signed(width: int) -> nn.Module:
        return fake(-(2 ** (width - 1)), 2 ** (width - 1) - 1, torch.qint8, torch.per_tensor_symmetric)

    def layer(m: nn.Module, width: int, negative: bool) -> nn.Module:
        act = signed(width) if negative else fake(0, 2**width - 1, torch.quint8, torch.per_tensor_affine)
        return _Faked(m, signed(width), act)

    return low_bit(network, bits, layer, lambda: signed(8))


class _Faked(nn.Module):
    def __init__(self, layer: nn.Module, weight: nn.Module, act: nn.Module):
        super().__init__()
        self.layer, self.weight, self.act = layer, weight, act

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.layer, {"weight": self.weight(self.layer.weight)}, (self.act(x),))
