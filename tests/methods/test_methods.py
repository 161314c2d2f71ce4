"""All methods: padding and masked classes count for nothing, and a checkpoint holds what they need to go on."""

import copy
import functools
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from spequant.methods import (
    CMTKD,
    GSLR,
    QFD,
    QKD,
    SQAKD,
    Apprentice,
    BlockReplacement,
    ExtendedSPEQ,
    JointBits,
    MemberEnsemble,
    SPEQDistill,
    by_name,
    losses,
)
from spequant.methods.base import trained_by
from spequant.methods.tasks import SpanExtraction
from spequant.policies import Mix, Stochastic
from spequant.quantizers import LSQ
from spequant.train import (
    TrainingState,
    make_accelerator,
    make_optimizer,
    make_schedule,
    parameter_groups,
    train_step,
)
from support.equations import grads, quantized, small_batch, small_network
from support.starts import start


class Words(nn.Module):
    """Logits of a span from the tokens alone."""

    def __init__(self):
        super().__init__()
        self.table, self.first, self.head = nn.Embedding(50, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, input_ids, attention_mask):
        logits = self.head(self.first(self.table(input_ids)))
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


@pytest.mark.parametrize("kind", ["qfd", "features"])
def test_padding_is_no_feature(kind):
    ids, mask = torch.randint(0, 50, (4, 9)), torch.ones(4, 9, dtype=torch.int64)
    mask[:, 5:] = 0
    ends = {name: torch.tensor([0, 1, 2, 3]) for name in SpanExtraction.LABELS}
    floating = Words()
    model = spequant.prepare(floating, weight=LSQ(2), act=LSQ(2))
    batches = [{"input_ids": i, "attention_mask": mask, **ends} for i in (ids, torch.where(mask == 0, 49 - ids, ids))]
    spequant.calibrate(model, batches[:1], samples=4, run=SpanExtraction().logits)

    def losses(batch):
        if kind == "qfd":
            return QFD(floating, task=SpanExtraction())(model, batch)
        speq = spequant.SPEQ(task=SpanExtraction(), probability=1.0)
        return ExtendedSPEQ(speq, steps=1, head="head", feature_weight=1.0)(model, batch)

    one, other = map(losses, batches)
    torch.testing.assert_close(one.total, other.total)
    short = {k: v[:, :5] if v.ndim == 2 else v for k, v in batches[0].items()}
    torch.testing.assert_close(one.total, losses(short).total)  # as if it were not there
    assert one.total > one.task


def test_classes_masked_out_count_for_nothing(model, floating, batch):
    class Masked(spequant.Classification):
        def logits(self, model, batch):
            return F.pad(super().logits(model, batch), (0, 2), value=-torch.inf)

    given = {"task": Masked()}
    for method in (
        Apprentice(floating, **given),
        SQAKD(floating, **given),
        GSLR(floating, steps=2, **given),
        BlockReplacement(floating, **given),
        MemberEnsemble(**given),
        JointBits(**given),
    ):
        losses = method(model, batch)
        losses.total.backward()
        assert losses.total.isfinite() and all(
            p.grad.isfinite().all() for p in model.parameters() if p.grad is not None
        )
    masked, plain = Apprentice(floating, **given)(model, batch), Apprentice(floating)(model, batch)
    torch.testing.assert_close(masked.total, plain.total)


def state_of(name, floating, batch, model):
    """A run of `model` by that method, as it begins."""
    method = {
        "qkd": lambda: QKD(floating, steps=6),
        "cmt-kd": lambda: CMTKD(floating, {bits: quantized(floating, batch, bits) for bits in (4, 8)}),
        "gslr": lambda: GSLR(floating, steps=6),
        "block-replacement": lambda: BlockReplacement(floating),
    }[name]()
    partner = trained_by(method)
    optimizer = make_optimizer(
        "sgd",
        parameter_groups(nn.ModuleList([model, partner]) if partner else model, lr=0.05, weight_decay=1e-4),
    )
    return TrainingState(model, method, optimizer, make_schedule("cosine", optimizer, 6))


@pytest.mark.parametrize("name", ["qkd", "cmt-kd", "gslr", "block-replacement"])
def test_a_snapshot_in_the_middle_leads_to_the_very_same_end(name, floating, batch):
    batches = [small_batch() for _ in range(6)]
    accelerator = make_accelerator()
    model = quantized(floating, batch, 3)
    again = copy.deepcopy(model)
    state = state_of(name, floating, batch, model)
    for i, given in enumerate(batches):
        if i == 3:
            snapshot = state.capture()
        train_step(state, given, accelerator, clip_norm=1.0)
    other = state_of(name, floating, batch, again)
    other.restore(snapshot)
    for given in batches[3:]:
        train_step(other, given, accelerator, clip_norm=1.0)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    if state.partner is not None:
        theirs = other.partner.state_dict()
        assert all(torch.equal(v, theirs[k]) for k, v in state.partner.state_dict().items())
        moved = state_of(name, floating, batch, quantized(floating, batch, 3)).partner.state_dict()
        assert any(not torch.equal(v, moved[k]) for k, v in theirs.items())  # it has learned
        with pytest.raises(ValueError, match=r"method\..* is missing"):
            other.restore(replace(snapshot, tensors={k: v for k, v in snapshot.tensors.items() if "method." not in k}))


COMPILED = """
import copy, torch, spequant
from spequant.methods import CMTKD, QFD, JointBits
from spequant.models import resnet8
from spequant.policies import Mix, Stochastic
from spequant.quantizers import LSQ
from spequant.train import Compiled
torch.set_num_threads(1)
torch.manual_seed(0)
batch, floating = (torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))), resnet8()
def quantized(bits):
    model = spequant.prepare(floating, weight=LSQ(bits), act=LSQ(bits))
    spequant.calibrate(model, [batch], samples=16)
    return model.train()
model = quantized(4)
make = lambda: METHOD
eager, method, wrapped = make()(copy.deepcopy(model), batch), make(), Compiled(copy.deepcopy(model)).train()
for _ in range(2):  # traced once, hooks with it
    found = method(wrapped, batch)
    torch.testing.assert_close(found.total, eager.total, rtol=1e-2, atol=1e-3)
    found.total.backward()
assert all(p.grad is not None for p in wrapped.parameters())
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["QFD(floating)", "CMTKD(floating, {8: quantized(8)})", "JointBits()"])
def test_features_and_widths_of_a_compiled_model(method):
    code = COMPILED.replace("METHOD", method)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["done"], done.stderr


# ---- settings


@pytest.fixture
def begun(batch):
    """What the methods of a run are made with."""
    network = small_network()
    at = functools.partial(quantized, network, batch)
    return start(network, at(2), quantized=at)


OTHERS = {"apprentice": {"joint": True}, "qfd": {"bits": 3}, "cmt-kd": {"widths": (3, 6)}}


@pytest.mark.parametrize("name", by_name)
def test_each_name_makes_a_method_that_trains(name, begun, batch):
    method = by_name[name](**OTHERS.get(name, {})).build(begun)
    losses = method(begun.student, batch)
    losses.total.backward()
    assert losses.total.isfinite() and all(grads(begun.student))
    assert (trained_by(method) is not None) == (name in ("apprentice", "qkd", "cmt-kd"))


def test_what_the_settings_say_reaches_the_method(begun):
    speq = {"high_bits": 6, "probability": 0.3, "loss": "kl", "temperature": 3.0, "weight": 0.7, "passes": 2}
    made = spequant.SPEQ.Settings(**speq, batch_norm="eval").build(begun)
    assert isinstance(made, spequant.SPEQ) and (made.policy, made.loss) == (Stochastic(6, 0.3), losses.kl)
    assert (made.temperature, made.weight, made.batch_norm, made.passes, made.seed) == (3.0, 0.7, "eval", 2, 5)
    assert spequant.SPEQ.Settings(mix=True).build(begun).policy == Mix()
    distill = spequant.Distill.Settings(loss="cosine", temperature=3.0, weight=0.7).build(begun)
    assert (distill.loss, distill.temperature, distill.weight) == (losses.cosine, 3.0, 0.7)
    assert GSLR.Settings(weight=0.5).build(begun).weight == 0.5
    assert (GSLR.Settings().build(begun).steps, QKD.Settings().build(begun).self_studying_end) == (10, 3)
    assert QFD.Settings(bits=3).build(begun).bits == 3 and SQAKD.Settings().build(begun).temperature == 4.0
    for kind in (JointBits, MemberEnsemble):
        assert kind.Settings(widths=(3, 5)).build(begun).widths == (3, 5)
    assert list(CMTKD.Settings(widths=(3, 6)).build(begun).trained.conv1.bits) == [3, 6]
    both = SPEQDistill.Settings(speq=spequant.SPEQ.Settings(weight=0.3)).build(begun)
    assert (both.speq.weight, both.distill.weight) == (0.3, 1.0)
    assert BlockReplacement.Settings(weight=0.2).build(begun).weight == 0.2
    assert Apprentice.Settings(joint=True).build(begun).joint


def test_additions_to_speq(begun):
    speq = spequant.SPEQ.Settings(temperature=2.0)
    made = ExtendedSPEQ.Settings(speq=speq, temperature_end=1.0, probability_end=0.2).build(begun)
    assert (made.temperatures, made.probabilities, made.steps, made.trained) == ((2.0, 1.0), (0.5, 0.2), 10, None)
    made = ExtendedSPEQ.Settings(average=0.9, feature_weight=2.0).build(begun)
    assert (made.decay, made.head, made.feature_weight, made.speq.seed) == (0.9, "linear", 2.0, 5)
    assert made.trained is not begun.student and made.trained.training
    parts = ExtendedSPEQ.Settings(average=0.9).build(replace(begun, accumulate=4))  # calls that make a step
    assert parts.decay**4 == pytest.approx(0.9)


@pytest.mark.parametrize(
    ("name", "settings", "named"),
    [
        ("speq", {"passes": 0}, "passes is 0"),
        ("speq", {"batch_norm": "never"}, "batch_norm is 'never'"),
        ("speq", {"high_bits": 9}, "high_bits is 9"),
        ("speq", {"probability": 2.0}, "probability is 2"),
        ("speq", {"loss": "kll"}, "loss is 'kll'; did you mean kl"),
        ("extended-speq", {"average": 1.0}, "decay is 1"),
        ("extended-speq", {"temperature_end": 0.0}, "temperature_end is 0"),
        ("distill", {"weight": -1.0}, "weight is -1"),
        ("qkd", {"temperature": 0.0}, "temperature is 0"),
        ("qfd", {"bits": 1}, "bits is 1"),
        ("gslr", {"weight": 2.0}, "weight is 2"),
        ("cmt-kd", {"widths": ()}, "teachers is empty"),
        ("joint-bits", {"widths": (0,)}, "widths is 0"),
        ("member-ensemble", {"widths": (9,)}, "widths is 9"),
    ],
)
def test_settings_out_of_range_are_refused_when_they_are_made(name, settings, named):
    with pytest.raises(ValueError, match=named):
        by_name[name](**settings)


def test_students_that_speq_cannot_teach_are_refused():
    for settings in (spequant.SPEQ.Settings(), ExtendedSPEQ.Settings(), SPEQDistill.Settings()):
        with pytest.raises(ValueError, match="act_bits is None"):
            settings.check_student(None, mixed=False)
        with pytest.raises(ValueError, match=r"high_bits is 8; .* act_bits, 8"):
            settings.check_student(8, mixed=False)
        settings.check_student(8, mixed=True)
    by_name["retrain"]().check_student(None, mixed=False)
