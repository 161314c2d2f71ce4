"""Training methods: callables (model, batch) -> Losses. One method a file, its equation in the docstring."""

from spequant.methods.apprentice import Apprentice
from spequant.methods.base import Losses, Method, allow_float
from spequant.methods.block_replacement import BlockReplacement
from spequant.methods.cmt_kd import CMTKD
from spequant.methods.distill import Distill, SPEQDistill
from spequant.methods.extended_speq import ExtendedSPEQ
from spequant.methods.gslr import GSLR
from spequant.methods.joint_bits import JointBits
from spequant.methods.member_ensemble import MemberEnsemble
from spequant.methods.qfd import QFD
from spequant.methods.qkd import QKD
from spequant.methods.retrain import Retrain
from spequant.methods.speq import SPEQ
from spequant.methods.sqakd import SQAKD

__all__ = [
    "CMTKD",
    "GSLR",
    "QFD",
    "QKD",
    "SPEQ",
    "SQAKD",
    "Apprentice",
    "BlockReplacement",
    "Distill",
    "ExtendedSPEQ",
    "JointBits",
    "Losses",
    "MemberEnsemble",
    "Method",
    "Retrain",
    "SPEQDistill",
    "allow_float",
]
