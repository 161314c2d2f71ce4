"""On a GPU that is not there: no tensor is left on the processor, and only what has to waits for the GPU.

Backward passes are left out, since torch's engine asks for a real device.
"""

import copy

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException

import spequant
from spequant.layers import QuantizedLayer
from spequant.methods import SPEQ, by_name
from spequant.quantizers import LSQ
from spequant.train import Diagnostics, evaluate
from support.fake_gpu import fake_gpu, move_networks, moved
from support.starts import start
from support.task_networks import kind

CERTAIN = SPEQ.Settings(probability=1.0)
OPTIONS = {
    "apprentice": {"joint": True},
    "extended-speq": {"speq": CERTAIN, "average": 0.9},
    "speq-distill": {"speq": CERTAIN},
}


@pytest.fixture(scope="module")
def subject():
    torch.manual_seed(0)
    made = kind("classification")
    made.at = {bits: made.prepared(bits) for bits in (2, 4)}
    return made


@pytest.mark.parametrize("name", by_name)
def test_the_forward_passes_of_a_method_wait_for_nothing(name, subject):
    student, model = copy.deepcopy(subject.at[2]), copy.deepcopy(subject.at[2])
    given = start(copy.deepcopy(subject.network), student, quantized=lambda bits: copy.deepcopy(subject.at[4]))
    method = by_name[name](**OPTIONS.get(name, {})).build(given)
    with fake_gpu() as waits:
        move_networks(method)
        model, batch = moved(model), moved(subject.batch)
        waits.forget()
        for _ in range(2):
            losses = method(model, batch)
        assert losses.total.device.type == "cuda" and not waits.places, waits.places


def test_an_evaluation_waits_once_for_all_batches(subject):
    model = copy.deepcopy(subject.at[2])
    with fake_gpu() as waits:
        model, batch = moved(model), moved(subject.batch)
        waits.forget()
        evaluate(model, [batch, batch, batch])
        assert waits.places == ["train/loop.py _local_scalar_dense"] and waits.count == 2  # hits and loss


def test_diagnostics_only_read_figures(subject):
    model = copy.deepcopy(subject.at[2])
    with fake_gpu() as waits:
        model, batch = moved(model), moved(subject.batch)
        waits.forget()
        Diagnostics()(model, batch, run=subject.task.logits)
        assert waits.places == ["train/diagnostics.py _local_scalar_dense"]


def test_calibration_waits_only_after_the_last_batch(subject):
    model = spequant.prepare(subject.network, weight=LSQ(2), act=LSQ(2))
    with fake_gpu() as waits:
        model, batch = moved(model), moved(subject.batch)
        waits.forget()
        with pytest.raises(DataDependentOutputException):  # ranges follow from values, of which there are none
            spequant.calibrate(model, [batch] * 20, samples=120)
        layers = sum(isinstance(m, QuantizedLayer) for m in model.modules())
        assert 0 < waits.count <= 2 * layers, waits  # not for each batch


def test_statistics_of_batch_norm_wait_for_nothing():
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    with fake_gpu() as waits:
        model, batch = moved(model), moved(torch.randn(4, 3, 8, 8))
        waits.forget()
        spequant.reestimate_batch_norm(model, [batch, batch])
        assert not waits.places, waits.places


def test_what_waits_is_seen():
    with fake_gpu() as waits:
        x = moved(torch.ones(3))
        waits.forget()
        assert float(x.sum()) == 1.0 and bool(x.any())
        x.cpu()
        x * torch.ones(())
        assert [place.partition(" ")[2] for place in waits.places] == [
            "_local_scalar_dense",
            "_to_copy cuda -> cpu",
            "mul with a tensor on the CPU",
        ]
