"""All methods: padding and masked classes have no effect, training resumes from checkpoints, settings reach methods."""

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
    GPLQ,
    GSLR,
    QFD,
    QKD,
    SQAKD,
    Apprentice,
    BlockReplacement,
    Dampening,
    ExtendedSPEQ,
    GoR,
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
    """A network for spans whose logits depend only on the token at their position."""

    def __init__(self):
        super().__init__()
        self.table, self.first, self.head = nn.Embedding(50, 12), nn.Linear(12, 12), nn.Linear(12, 2)

    def forward(self, input_ids, attention_mask):
        logits = self.head(self.first(self.table(input_ids)))
        return {"start_logits": logits[..., 0], "end_logits": logits[..., 1]}


@pytest.mark.parametrize("kind", ["qfd", "features"])
def test_features_leave_padding_out(kind):
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

    first, second = map(losses, batches)
    torch.testing.assert_close(first.total, second.total)
    short = {k: v[:, :5] if v.ndim == 2 else v for k, v in batches[0].items()}
    torch.testing.assert_close(first.total, losses(short).total)  # equal to a batch without padding
    assert first.total > first.task


def test_masked_classes_do_not_change_the_loss(model, floating, batch):
    class Masked(spequant.Classification):
        def logits(self, model, batch):
            return F.pad(super().logits(model, batch), (0, 2), value=-torch.inf)

    options = {"task": Masked()}
    for method in (
        Apprentice(floating, **options),
        SQAKD(floating, **options),
        GSLR(floating, steps=2, **options),
        BlockReplacement(floating, **options),
        MemberEnsemble(**options),
        JointBits(**options),
    ):
        losses = method(model, batch)
        losses.total.backward()
        assert losses.total.isfinite() and all(
            p.grad.isfinite().all() for p in model.parameters() if p.grad is not None
        )
    masked, plain = Apprentice(floating, **options)(model, batch), Apprentice(floating)(model, batch)
    torch.testing.assert_close(masked.total, plain.total)


def state_of(name, floating, batch, model):
    """Return the state of a run of `model` with this method, before its first step."""
    method = {
        "qkd": lambda: QKD(floating, steps=6),
        "cmt-kd": lambda: CMTKD(floating, {bits: quantized(floating, batch, bits) for bits in (4, 8)}),
        "gslr": lambda: GSLR(floating, steps=6),
        "block-replacement": lambda: BlockReplacement(floating),
        "dampening": lambda: Dampening(steps=6),
        "gor": lambda: GoR(floating),
        "gplq": lambda: GPLQ(floating, steps=6, share=2 / 3),
    }[name]()
    partner = trained_by(method)
    optimizer = make_optimizer(
        "sgd",
        parameter_groups(nn.ModuleList([model, partner]) if partner else model, lr=0.05, weight_decay=1e-4),
    )
    return TrainingState(model, method, optimizer, make_schedule("cosine", optimizer, 6))


@pytest.mark.parametrize("name", ["qkd", "cmt-kd", "gslr", "block-replacement", "dampening", "gor", "gplq"])
def test_resuming_from_a_snapshot_gives_identical_weights(name, floating, batch):
    batches = [small_batch() for _ in range(6)]
    accelerator = make_accelerator()
    model = quantized(floating, batch, 3)
    again = copy.deepcopy(model)
    state = state_of(name, floating, batch, model)
    for i, step_batch in enumerate(batches):
        if i == 3:
            snapshot = state.capture()
        train_step(state, step_batch, accelerator, clip_norm=1.0)
    other = state_of(name, floating, batch, again)
    other.restore(snapshot)
    for step_batch in batches[3:]:
        train_step(other, step_batch, accelerator, clip_norm=1.0)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in model.state_dict().items())
    if state.partner is not None:
        resumed = other.partner.state_dict()
        assert all(torch.equal(v, resumed[k]) for k, v in state.partner.state_dict().items())
        initial = state_of(name, floating, batch, quantized(floating, batch, 3)).partner.state_dict()
        assert any(not torch.equal(v, initial[k]) for k, v in resumed.items())  # the partner has learned
        with pytest.raises(ValueError, match=r"method\..* is missing"):
            other.restore(replace(snapshot, tensors={k: v for k, v in snapshot.tensors.items() if "method." not in k}))


COMPILED = """
import copy, torch, spequant
from spequant.methods import CMTKD, GPLQ, QFD, JointBits, SQuaT
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
for _ in range(2):  # the model is traced once, with its hooks
    losses = method(wrapped, batch)
    torch.testing.assert_close(losses.total, eager.total, rtol=1e-2, atol=1e-3)
    losses.total.backward()
assert all(p.grad is not None for n, p in wrapped.named_parameters() if not ASIDE)
print("done")
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "aside"),
    [
        *(
            (m, "False")
            for m in ("QFD(floating)", "SQuaT(floating)", "CMTKD(floating, {8: quantized(8)})", "JointBits()")
        ),
        ("GPLQ(floating, steps=9)", "('linear.layer' in n or 'weight_quantizer' in n)"),
    ],
)
def test_features_and_widths_of_a_compiled_model(method, aside):
    code = COMPILED.replace("METHOD", method).replace("ASIDE", aside)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["done"], done.stderr


# ---- settings


@pytest.fixture
def run_start(batch):
    """What a run passes to the settings of its method."""
    network = small_network()
    at = functools.partial(quantized, network, batch)
    return start(network, at(2), quantized=at)


OPTIONS = {"apprentice": {"joint": True}, "qfd": {"bits": 3}, "cmt-kd": {"widths": (3, 6)}}


@pytest.mark.parametrize("name", by_name)
def test_the_settings_of_each_name_build_a_method_that_trains(name, run_start, batch):
    method = by_name[name](**OPTIONS.get(name, {})).build(run_start)
    losses = method(run_start.student, batch)
    losses.total.backward()
    assert losses.total.isfinite() and (all(grads(run_start.student)) or name == "gplq")  # which begins with a part
    assert (trained_by(method) is not None) == (name in ("apprentice", "qkd", "cmt-kd", "gor"))


def test_settings_are_passed_to_the_method(run_start):
    speq = {"high_bits": 6, "probability": 0.3, "loss": "kl", "temperature": 3.0, "weight": 0.7, "passes": 2}
    method = spequant.SPEQ.Settings(**speq, batch_norm="eval").build(run_start)
    assert isinstance(method, spequant.SPEQ) and (method.policy, method.loss) == (Stochastic(6, 0.3), losses.kl)
    assert (method.temperature, method.weight, method.batch_norm) == (3.0, 0.7, "eval")
    assert (method.passes, method.seed) == (2, 5)
    assert spequant.SPEQ.Settings(mix=True).build(run_start).policy == Mix()
    distill = spequant.Distill.Settings(loss="cosine", temperature=3.0, weight=0.7).build(run_start)
    assert (distill.loss, distill.temperature, distill.weight) == (losses.cosine, 3.0, 0.7)
    assert GSLR.Settings(weight=0.5).build(run_start).weight == 0.5
    assert (GSLR.Settings().build(run_start).steps, QKD.Settings().build(run_start).self_studying_end) == (10, 3)
    assert QFD.Settings(bits=3).build(run_start).bits == 3 and SQAKD.Settings().build(run_start).temperature == 4.0
    for kind in (JointBits, MemberEnsemble):
        assert kind.Settings(widths=(3, 5)).build(run_start).widths == (3, 5)
    assert list(CMTKD.Settings(widths=(3, 6)).build(run_start).trained.conv1.bits) == [3, 6]
    both = SPEQDistill.Settings(speq=spequant.SPEQ.Settings(weight=0.3)).build(run_start)
    assert (both.speq.weight, both.distill.weight) == (0.3, 1.0)
    assert BlockReplacement.Settings(weight=0.2).build(run_start).weight == 0.2
    assert Apprentice.Settings(joint=True).build(run_start).joint


def test_settings_of_extended_speq_are_passed_to_the_method(run_start):
    speq = spequant.SPEQ.Settings(temperature=2.0)
    method = ExtendedSPEQ.Settings(speq=speq, temperature_end=1.0, probability_end=0.2).build(run_start)
    assert (method.temperatures, method.probabilities) == ((2.0, 1.0), (0.5, 0.2))
    assert (method.steps, method.trained) == (10, None)
    method = ExtendedSPEQ.Settings(average=0.9, feature_weight=2.0).build(run_start)
    assert (method.decay, method.head, method.feature_weight, method.speq.seed) == (0.9, "linear", 2.0, 5)
    assert method.trained is not run_start.student and method.trained.training
    method = ExtendedSPEQ.Settings(average=0.9).build(replace(run_start, accumulate=4))  # four calls per step
    assert method.decay**4 == pytest.approx(0.9)


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
def test_settings_out_of_range_are_refused(name, settings, named):
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
