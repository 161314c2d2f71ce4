"""The quantizers, one file per paper, and `by_name`, from which recipes choose."""

from spequant.quantizers.apot import APoT
from spequant.quantizers.base import Quantizer, Rule
from spequant.quantizers.csq import CSQ
from spequant.quantizers.dorefa import DoReFa
from spequant.quantizers.ewgs import set_ewgs
from spequant.quantizers.least_squares_step import LeastSquares
from spequant.quantizers.lsq import LSQ
from spequant.quantizers.lsq_plus import LSQPlus
from spequant.quantizers.minmax import MinMax
from spequant.quantizers.pact import PACT
from spequant.quantizers.ranges import least_squares, percentile
from spequant.quantizers.sawb import SAWB
from spequant.quantizers.settings import QuantizerSettings
from spequant.quantizers.statsq import StatsQ

by_name: dict[str, type[Quantizer]] = {
    "pact": PACT,
    "sawb": SAWB,
    "lsq": LSQ,
    "lsq-plus": LSQPlus,
    "dorefa": DoReFa,
    "least-squares": LeastSquares,
    "minmax": MinMax,
    "csq": CSQ,
    "apot": APoT,
    "statsq": StatsQ,
}

__all__ = [
    "CSQ",
    "LSQ",
    "PACT",
    "SAWB",
    "APoT",
    "DoReFa",
    "LSQPlus",
    "LeastSquares",
    "MinMax",
    "Quantizer",
    "QuantizerSettings",
    "Rule",
    "StatsQ",
    "by_name",
    "least_squares",
    "percentile",
    "set_ewgs",
]
