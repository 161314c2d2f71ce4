"""How a recipe quantizes: the bits and quantizers of weights and activations, and how they prepare a network."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from spequant import quantizers
from spequant.calibration.ranges import calibrate
from spequant.preparation.placement import prepare
from spequant.processes import world
from spequant.quantizers import PACT, SAWB, Quantizer, QuantizerSettings, least_squares, percentile, set_ewgs
from spequant.quantizers.base import check_bits
from spequant.train import samples

Bits = int | tuple[int | None, int | None] | None
"""One width for weight and input, or one for each; None stands for float."""
CALIBRATION = 1024
"""Samples from which ranges are set."""
WIDTHS = ("weight_bits", "act_bits", "end_bits", "embedding_bits", "residual_bits", "product_bits", "between_bits")
ONLY_QUANTIZED = ("ewgs", "percentile", "per_channel", "power_of_two", "overrides")
"""Fields that a float network cannot have."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What is quantized, and how. If both bits are None, the network stays float."""

    weight: QuantizerSettings = field(default_factory=SAWB.Settings)
    """quantizer of weights"""
    weight_bits: int | None = 2
    """bits of weights, 1 to 8; None: float"""
    depthwise: str | None = None
    """quantizer of the weights of depthwise convolutions (lsq, least-squares, sawb ...), at weight_bits, with one range
    per channel; None: that of the other weights, or least-squares in place of sawb"""
    act: QuantizerSettings = field(default_factory=PACT.Settings)
    """quantizer of activations"""
    act_bits: int | None = 2
    """bits of activations, 1 to 8; None: float"""
    end_bits: int | None = 8
    """bits of weights and activations of the first and last layer; None: float"""
    embedding_bits: int | None = 8
    """bits of the tables of embeddings; None: float"""
    residual_bits: int | None = 8
    """bits of the addends of residual additions; None: float"""
    product_bits: int | None = None
    """bits of both factors of attention's products (queries and keys, probabilities and values); None: float"""
    between_bits: int | None = None
    """bits of what stands between layers (inputs of SiLU and other functions, factors of products, inputs of means), so
    that --to onnx computes it on integers; None: float"""
    per_channel: bool = False
    """whether weights have one range per output channel"""
    power_of_two: bool = False
    """whether the scales of weights and activations are powers of two, so that fixed-point hardware shifts"""
    overrides: tuple[str, ...] = ()
    """bits of single layers in place of the widths above: PATTERN=WEIGHT/INPUT, PATTERN=BITS or PATTERN=float, e.g.
    layer1.*=3/4 fc=8; the last pattern that matches a layer decides"""
    ewgs: float = 0.0
    """delta of element-wise gradient scaling (EWGS), e.g. .001; 0: straight-through gradients"""
    percentile: float | None = None
    """percentile of the activations at which calibration clips, above 0 up to 100; None: clip of least squared error"""

    def __post_init__(self) -> None:
        for name in WIDTHS:
            check_bits(getattr(self, name), f"quant.{name}", or_float=True)
        if self.percentile is not None and not 0 < self.percentile <= 100:
            raise ValueError(f"quant.percentile is {self.percentile!r}; expected above 0 and at most 100, or None")
        if not 0 <= self.ewgs < math.inf:
            raise ValueError(f"quant.ewgs is {self.ewgs!r}; expected a finite number of 0 or more")
        parse_overrides(self.overrides)
        if not self.quantized:
            self._check_float()
        self.weight.build(self.weight_bits, power_of_two=self.power_of_two)
        self.act.build(None, power_of_two=self.power_of_two)
        self.weight.kind(None, of_weight=True)
        if self.act.kind.weights_only:
            raise ValueError(
                f"quant.act is {self.act.kind.__name__}, which quantizes only weights; expected PACT or LSQ"
            )
        self._depthwise()

    def _check_float(self) -> None:
        for name in ONLY_QUANTIZED:
            value, default = getattr(self, name), getattr(Quantization, name)
            if value != default:
                raise ValueError(f"quant.{name} is {value!r}; expected {default!r}, since nothing is quantized")

    @property
    def quantized(self) -> bool:
        return self.weight_bits is not None or self.act_bits is not None

    def build(self, network: nn.Module) -> nn.Module:
        """Return `network` with quantizers, not calibrated; if both bits are None, `network` itself."""
        if not self.quantized:
            return network
        # PACT's decay makes clips smaller, which pays with few levels. At 8 bits it would only clip more.
        plain, powers = type(self.act)(), self.power_of_two
        quantized = prepare(
            network,
            weight=None if self.weight_bits is None else self.weight.build(self.weight_bits, power_of_two=powers),
            act=None if self.act_bits is None else self.act.build(self.act_bits, power_of_two=powers),
            depthwise=self._depthwise(),
            ends=(self._weight_at(self.end_bits), plain.build(self.end_bits, power_of_two=powers)),
            embeddings=self._weight_at(self.embedding_bits),
            residual=None if self.residual_bits is None else plain.build(self.residual_bits, power_of_two=powers),
            products=None if self.product_bits is None else plain.build(self.product_bits, power_of_two=powers),
            between=None if self.between_bits is None else plain.build(self.between_bits, power_of_two=powers),
            overrides=parse_overrides(self.overrides),
            per_channel=self.per_channel,
        )
        if self.ewgs:
            set_ewgs(quantized, self.ewgs)
        return quantized

    def calibrated(self, network: nn.Module, batches: list[Any]) -> nn.Module:
        """Return what `build` does, with ranges set from `batches`, which are the same in every process."""
        quantized = self.build(network)
        if quantized is not network:
            count = min(CALIBRATION, sum(map(samples, batches))) * world()  # fewer if there are fewer
            rule = least_squares if self.percentile is None else percentile(self.percentile)
            calibrate(quantized, batches, rule=rule, samples=count)
        return quantized

    def at(self, bits: int) -> "Quantization":
        """Return these settings with weights and activations at `bits`.

        If the weights' quantizer does not have that width, the one that it names takes its place (see `Quantizer.at`).
        """
        kind = type(self._weight_at(bits))
        weight = self.weight if kind is self.weight.kind else kind.Settings()
        return replace(self, weight=weight, weight_bits=bits, act_bits=bits)

    def _weight_at(self, bits: int | None) -> Quantizer:
        return type(self.weight)().build(None, power_of_two=self.power_of_two).at(bits)

    def _depthwise(self) -> Quantizer | None:
        if self.depthwise is None:
            return None
        if self.depthwise not in quantizers.by_name:
            raise ValueError(f"quant.depthwise is {self.depthwise!r}; expected {', '.join(quantizers.by_name)} or None")
        return quantizers.by_name[self.depthwise](self.weight_bits, of_weight=True, power_of_two=self.power_of_two)


def parse_overrides(texts: Sequence[str]) -> dict[str, Bits]:
    """Read the bits of single layers.

    Args:
        texts: each PATTERN=BITS, PATTERN=WEIGHT/INPUT or PATTERN=float; WEIGHT and INPUT may be "float", too.

    Returns:
        Bits by pattern of layer names, in the order in which later ones win.

    Raises:
        ValueError: a text has another form, or bits other than 1 to 8.
    """
    bits: dict[str, Bits] = {}
    for text in texts:
        pattern, _, value = text.rpartition("=")
        sides = [_side(side) for side in value.split("/")]
        if not pattern or len(sides) > 2 or 0 in sides:
            raise ValueError(
                f"quant.overrides has {text!r}; expected PATTERN=BITS, PATTERN=WEIGHT/INPUT or PATTERN=float, bits "
                "from 1 to 8, e.g. layer1.*=3/4"
            )
        bits.pop(pattern, None)  # a pattern given twice counts where it was given last
        bits[pattern] = sides[0] if len(sides) == 1 else (sides[0], sides[1])
    return bits


def _side(text: str) -> int | None:
    """Return the bits, None for float, or 0 for anything else."""
    return None if text == "float" else int(text) if text in "12345678" and len(text) == 1 else 0
