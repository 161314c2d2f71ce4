"""Time training steps of low-bit networks of other toolkits next to ours: the same layers at the same bits.

    python benchmarks/peers.py                                     # ResNet-20, batch 128, bf16: every row, 10 rounds
    python benchmarks/peers.py --rows retrain speq brevitas "brevitas eager" --dtype fp32 --json rows.json

The options and the measurement are those of `spequant bench train`. A toolkit that is not installed is left out with a
line that says so: `pip install brevitas torchao nvidia-modelopt`; torch.ao is part of torch. torchao trains linear
layers alone, ModelOpt no additions: what a toolkit lacks stays float in its row.
"""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
import tyro
from torch import Tensor, nn
from torch.func import functional_call

from spequant.app.bench.report import print_bench_train
from spequant.app.bench.subjects import Subject
from spequant.app.bench.train import STEPS, BenchTrain, StepKind, compiled_and_eager
from spequant.methods import allow_float
from spequant.preparation.placement import replace_modules

MakeLayer = Callable[[nn.Module, int, bool], nn.Module]
"""(convolution or linear layer, bits of weight and input, whether the input has negative values) -> low-bit layer"""


def low_bit(network: nn.Module, bits: int, layer: MakeLayer, addend: Callable[[], nn.Module]) -> nn.Module:
    """Replace the layers and residual additions of a network; `network` is changed.

    Args:
        network: float; its residual additions are marked by `residual_addition`.
        bits: of weights and inputs; the first and the last layer have 8.
        layer: makes the low-bit layer from each convolution and linear layer.
        addend: makes the quantizer of each addend.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    ends = layers[0], layers[-1]
    low_bit_layers = {id(m): layer(m, 8 if m in ends else bits, m is layers[0]) for m in layers}
    adds = [m for m in network.modules() if getattr(m, "residual_addition", False)]
    return replace_modules(network, low_bit_layers | {id(m): Add(addend(), addend()) for m in adds}).train()


class Add(nn.Module):
    """A residual addition with a quantizer for each addend."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.branch, self.shortcut = branch, shortcut

    def forward(self, branch: Tensor, shortcut: Tensor) -> Tensor:
        return self.branch(branch) + self.shortcut(shortcut)


def brevitas(network: nn.Module, bits: int) -> nn.Module:
    """A network of Brevitas' QuantConv2d and QuantLinear, with one scale per tensor; `network` is changed.

    Scales of activations are learned from the second step on. By default Brevitas takes percentiles for 300 steps
    first, which are several times slower.

    Raises:
        ModuleNotFoundError: Brevitas is not installed.
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
            low_bit_layer = qnn.QuantLinear(m.in_features, m.out_features, **settings)
        else:
            assert isinstance(m, nn.Conv2d)
            shape = {k: getattr(m, k) for k in ("kernel_size", "stride", "padding", "dilation", "groups")}
            low_bit_layer = qnn.QuantConv2d(m.in_channels, m.out_channels, **shape, **settings)
        low_bit_layer.load_state_dict(m.state_dict(), strict=False)
        return low_bit_layer

    def addend() -> nn.Module:
        return qnn.QuantIdentity(act_quant=quant.Int8ActPerTensorFloat, collect_stats_steps=1)

    return low_bit(network, bits, layer, addend)


def torch_ao(network: nn.Module, bits: int) -> nn.Module:
    """A network with torch.ao's FakeQuantize, whose ranges are moving minima and maxima; `network` is changed.

    Raises:
        ModuleNotFoundError: this version of torch does not have torch.ao.quantization any more.
    """
    ao = import_module("torch.ao.quantization")

    def fake(low: int, high: int, dtype: torch.dtype, scheme: torch.qscheme) -> nn.Module:
        observer = ao.MovingAverageMinMaxObserver
        return ao.FakeQuantize(observer, quant_min=low, quant_max=high, dtype=dtype, qscheme=scheme)

    def signed(width: int) -> nn.Module:
        return fake(-(2 ** (width - 1)), 2 ** (width - 1) - 1, torch.qint8, torch.per_tensor_symmetric)

    def layer(m: nn.Module, width: int, negative: bool) -> nn.Module:
        act = signed(width) if negative else fake(0, 2**width - 1, torch.quint8, torch.per_tensor_affine)
        return FakeQuantized(m, signed(width), act)

    return low_bit(network, bits, layer, lambda: signed(8))


def torchao(network: nn.Module, bits: int) -> nn.Module:
    """A network with torchao's quantization-aware linear layers: weights per channel, inputs per token; `network` is
    changed.

    Raises:
        ModuleNotFoundError: torchao is not installed.
    """
    qat, quantize = import_module("torchao.quantization.qat"), import_module("torchao.quantization").quantize_
    ends = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for width, among in ((bits, ends[1:-1]), (8, (ends[0], ends[-1]))):
        ids, dtype = {id(m) for m in among}, getattr(torch, f"int{width}")
        parts = {
            "activation_config": qat.IntxFakeQuantizeConfig(dtype, "per_token", is_symmetric=False),
            "weight_config": qat.IntxFakeQuantizeConfig(dtype, "per_channel", is_symmetric=True),
        }
        quantize(network, qat.QATConfig(**parts), filter_fn=lambda m, _, ids=ids: id(m) in ids)
    return network.train()


def modelopt(subject: Subject, bits: int) -> nn.Module:
    """A network with ModelOpt's fake quantization, one range a tensor, those of activations found on eight samples and
    then fixed; `subject.network` is changed.

    Raises:
        ModuleNotFoundError: nvidia-modelopt is not installed.
    """
    mtq, network = import_module("modelopt.torch.quantization"), subject.network
    names = [name for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    rows: list[dict[str, Any]] = [{"quantizer_name": "*", "enable": False}]
    for name in names:
        width = 8 if name in (names[0], names[-1]) else bits
        for part in ("weight", "input"):
            rows.append({"quantizer_name": f"{name}.{part}_quantizer", "cfg": {"num_bits": width, "axis": None}})
    x = subject.part(8)

    def seen(model: nn.Module) -> None:
        model(**x) if isinstance(x, Mapping) else model(x)

    return mtq.quantize(network, {"quant_cfg": rows, "algorithm": "max"}, seen).train()


class FakeQuantized(nn.Module):
    """A layer with torch.ao's quantizers for its weight and its input."""

    def __init__(self, layer: nn.Module, weight: nn.Module, act: nn.Module):
        super().__init__()
        self.layer, self.weight, self.act = layer, weight, act

    def forward(self, x: Tensor) -> Tensor:
        return functional_call(self.layer, {"weight": self.weight(self.layer.weight)}, (self.act(x),))


def torch_ao_model(subject: Subject, bits: int) -> nn.Module:
    """`torch_ao` of a benchmark's network."""
    return allow_float(torch_ao(subject.network, bits))


def brevitas_model(subject: Subject, bits: int) -> nn.Module:
    """`brevitas` of a benchmark's network."""
    return allow_float(brevitas(subject.network, bits))


def torchao_model(subject: Subject, bits: int) -> nn.Module:
    """`torchao` of a benchmark's network."""
    return allow_float(torchao(subject.network, bits))


def modelopt_model(subject: Subject, bits: int) -> nn.Module:
    """`modelopt` of a benchmark's network."""
    return allow_float(modelopt(subject, bits))


PEERS = compiled_and_eager(
    {
        "torch.ao": StepKind(torch_ao_model),
        "torchao": StepKind(torchao_model),
        "brevitas": StepKind(brevitas_model),
        "modelopt": StepKind(modelopt_model),
    }
)
"""{name of a row: what it trains}, as `STEPS` of `spequant bench train`"""


if __name__ == "__main__":
    print_bench_train(tyro.cli(BenchTrain, description=__doc__), STEPS | PEERS)
