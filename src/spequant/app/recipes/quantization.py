"""How a recipe quantizes: bits and quantizers of weights and activations, and the network prepared by them."""

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
"""Of weight and input alike; or of each, None: float; or None: both float."""
CALIBRATION = 1024  # samples
WIDTHS = ("weight_bits", "act_bits", "end_bits", "embedding_bits", "residual_bits", "product_bits")
OF_QUANTIZED = ("ewgs", "percentile", "per_channel", "overrides")


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """What is rounded, and how. Both bits None: a float network."""

    weight: QuantizerSettings = field(default_factory=SAWB.Settings)
    weight_bits: int | None = 2
    depthwise: str | None = None
    """quantizer of depthwise convolutions, with one range per channel, at weight_bits: lsq, least-squares, sawb ...;
    None: as weight, but least-squares for sawb"""
    act: QuantizerSettings = field(default_factory=PACT.Settings)
    act_bits: int | None = 2
    end_bits: int | None = 8
    """first and last layer; None: float"""
    embedding_bits: int | None = 8
    """tables of embeddings; None: float"""
    residual_bits: int | None = 8
    """addends of residual additions; None: float"""
    product_bits: int | None = None
    """both sides of attention's products q k and p v; None: float"""
    per_channel: bool = False
    """one range per output channel of a weight"""
    overrides: tuple[str, ...] = ()
    """bits of single layers in place of all these, e.g. layer1.*=3/4 (weight/input), fc=8, conv1=float; the last match
    wins"""
    ewgs: float = 0.0
    """d of element-wise gradient scaling, EWGS, e.g. .001; 0: straight-through"""
    percentile: float | None = None
    """clip at this percentile of the activations in calibration; None: the clip of least squared error"""

    def __post_init__(self) -> None:
        for name in WIDTHS:
            check_bits(getattr(self, name), f"quant.{name}", or_float=True)
        if self.percentile is not None and not 0 < self.percentile <= 100:
            raise ValueError(f"quant.percentile is {self.percentile!r}; expected above 0 and at most 100, or None")
        if not self.ewgs >= 0:
            raise ValueError(f"quant.ewgs is {self.ewgs!r}; expected 0 or more")
        parse_overrides(self.overrides)
        if not self.quantized:
            self._check_float()
        self.weight.build(self.weight_bits)
        self.weight.kind(None, of_weight=True)
        if self.act.kind.weights_only:
            raise ValueError(
                f"quant.act is {self.act.kind.__name__}, which quantizes only weights; expected PACT or LSQ"
            )
        self._depthwise()

    def _check_float(self) -> None:
        for name in OF_QUANTIZED:
            value, default = getattr(self, name), getattr(Quantization, name)
            if value != default:
                raise ValueError(f"quant.{name} is {value!r}; expected {default!r}, since nothing is quantized")

    @property
    def quantized(self) -> bool:
        return self.weight_bits is not None or self.act_bits is not None

    def build(self, network: nn.Module) -> nn.Module:
        """`network` prepared, not calibrated; the float network itself where both bits are None."""
        if not self.quantized:
            return network
        # PACT's penalty is for clips of few levels: at 8 bits a wide range costs nothing, and pulled in it clips.
        plain = type(self.act)()
        quantized = prepare(
            network,
            weight=None if self.weight_bits is None else self.weight.build(self.weight_bits),
            act=None if self.act_bits is None else self.act.build(self.act_bits),
            depthwise=self._depthwise(),
            ends=(self._weight_at(self.end_bits), plain.build(self.end_bits)),
            embeddings=self._weight_at(self.embedding_bits),
            residual=None if self.residual_bits is None else plain.build(self.residual_bits),
            products=None if self.product_bits is None else plain.build(self.product_bits),
            overrides=parse_overrides(self.overrides),
            per_channel=self.per_channel,
        )
        if self.ewgs:
            set_ewgs(quantized, self.ewgs)
        return quantized

    def calibrated(self, network: nn.Module, batches: list[Any]) -> nn.Module:
        """`build`, and its ranges from `batches`, the very same ones in every process."""
        quantized = self.build(network)
        if quantized is not network:
            count = min(CALIBRATION, sum(map(samples, batches))) * world()  # fewer: all that there are
            rule = least_squares if self.percentile is None else percentile(self.percentile)
            calibrate(quantized, batches, rule=rule, samples=count)
        return quantized

    def at(self, bits: int) -> "Quantization":
        """The same with weights and activations at `bits`; the weights by another quantizer where their own does not
        reach so far."""
        kind = type(self._weight_at(bits))
        weight = self.weight if kind is self.weight.kind else kind.Settings()
        return replace(self, weight=weight, weight_bits=bits, act_bits=bits)

    def _weight_at(self, bits: int | None) -> Quantizer:
        return type(self.weight)().build(None).at(bits)

    def _depthwise(self) -> Quantizer | None:
        if self.depthwise is None:
            return None
        if self.depthwise not in quantizers.by_name:
            raise ValueError(f"quant.depthwise is {self.depthwise!r}; expected {', '.join(quantizers.by_name)} or None")
        return quantizers.by_name[self.depthwise](self.weight_bits, of_weight=True)


def parse_overrides(texts: Sequence[str]) -> dict[str, Bits]:
    """{pattern of layer names: bits} of texts "PATTERN=BITS", "PATTERN=WEIGHT/INPUT" or "PATTERN=float"; one of a pair
    may be "float" as well.

    ValueError names a text that is none of them, or has bits beyond 1 to 8.
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
        bits.pop(pattern, None)  # given twice, it stands where it was given last
        bits[pattern] = sides[0] if len(sides) == 1 else (sides[0], sides[1])
    return bits


def _side(text: str) -> int | None:
    """None: float; 0: no such number of bits."""
    return None if text == "float" else int(text) if text in "12345678" and len(text) == 1 else 0
