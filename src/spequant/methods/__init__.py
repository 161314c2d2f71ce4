"""Training methods: callables (model, batch) -> Losses. Each has its own file, with its equation in the docstring."""

from spequant.methods.apprentice import Apprentice
from spequant.methods.base import Losses, Method, MethodSettings, Start, TaughtSettings, allow_float
from spequant.methods.bin_regularization import BinRegularization
from spequant.methods.block_replacement import BlockReplacement
from spequant.methods.cmt_kd import CMTKD
from spequant.methods.dampening import Dampening
from spequant.methods.distill import Distill, SPEQDistill
from spequant.methods.extended_speq import ExtendedSPEQ
from spequant.methods.gor import GoR
from spequant.methods.gplq import GPLQ
from spequant.methods.gslr import GSLR
from spequant.methods.joint_bits import JointBits
from spequant.methods.member_ensemble import MemberEnsemble
from spequant.methods.qfd import QFD
from spequant.methods.qkd import QKD
from spequant.methods.retrain import Retrain
from spequant.methods.speq import SPEQ
from spequant.methods.sqakd import SQAKD
from spequant.methods.squat import SQuaT

by_name: dict[str, type[MethodSettings]] = {
    "retrain": Retrain.Settings,
    "speq": SPEQ.Settings,
    "extended-speq": ExtendedSPEQ.Settings,
    "distill": Distill.Settings,
    "speq-distill": SPEQDistill.Settings,
    "apprentice": Apprentice.Settings,
    "qkd": QKD.Settings,
    "sqakd": SQAKD.Settings,
    "qfd": QFD.Settings,
    "gslr": GSLR.Settings,
    "cmt-kd": CMTKD.Settings,
    "block-replacement": BlockReplacement.Settings,
    "member-ensemble": MemberEnsemble.Settings,
    "joint-bits": JointBits.Settings,
    "squat": SQuaT.Settings,
    "bin-regularization": BinRegularization.Settings,
    "dampening": Dampening.Settings,
    "gor": GoR.Settings,
    "gplq": GPLQ.Settings,
}
"""{name of a method in recipes: its settings}"""

__all__ = [
    "CMTKD",
    "GPLQ",
    "GSLR",
    "QFD",
    "QKD",
    "SPEQ",
    "SQAKD",
    "Apprentice",
    "BinRegularization",
    "BlockReplacement",
    "Dampening",
    "Distill",
    "ExtendedSPEQ",
    "GoR",
    "JointBits",
    "Losses",
    "MemberEnsemble",
    "Method",
    "MethodSettings",
    "Retrain",
    "SPEQDistill",
    "SQuaT",
    "Start",
    "TaughtSettings",
    "allow_float",
    "by_name",
]
