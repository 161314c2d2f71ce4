"""What a run is put together of: which teachers are compiled."""

from torch import nn

import spequant
from spequant.app.runs.assembly import compile_teacher
from spequant.methods import SPEQ, Apprentice, Distill, ExtendedSPEQ, GoR, SPEQDistill
from spequant.quantizers import PACT, SAWB
from spequant.train import Compiled


def test_teachers_that_stay_the_same_are_compiled_and_those_that_learn_are_not():
    network = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    both = SPEQDistill(SPEQ(), Distill(network))
    for method, owner in ((d := Distill(network), d), (g := GoR(network), g), (both, both.distill)):
        compile_teacher(method)
        assert isinstance(owner.teacher, Compiled) and not owner.teacher.training
    averaged = ExtendedSPEQ(SPEQ(), steps=4, average=spequant.prepare(network, weight=SAWB(2), act=PACT(2)))
    compile_teacher(averaged)
    assert isinstance(averaged.teacher, Compiled) and averaged.teacher.training
    learns = Apprentice(network, joint=True)
    compile_teacher(learns)
    assert not isinstance(learns.teacher, Compiled)
