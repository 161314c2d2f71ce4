"""SPEQ: its total against the equation, gradients, batch norm in the teacher's pass, and parts that a user defines."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from reference import losses as literal
from spequant import SPEQ, Retrain
from spequant.layers import act_quantizers
from spequant.methods.losses import kl
from spequant.policies import Fixed, Mix, Stochastic
from spequant.quantizers import LSQ, PACT, SAWB, Quantizer
from support.equations import at, calibrated, cross_entropy, gradients, logits, near, same, small_network, statistics


@pytest.fixture
def model(floating, batch):
    return calibrated(spequant.prepare(floating, weight=SAWB(2), act=PACT(2)), batch)


@pytest.mark.parametrize("quantizers", [(SAWB(2), PACT(2)), (LSQ(2), LSQ(2)), (SAWB(2, clip_gradient=True), PACT(4))])
def test_every_parameter_and_range_gets_a_gradient(quantizers, floating, batch):
    model = calibrated(spequant.prepare(floating, weight=quantizers[0], act=quantizers[1]), batch)
    for name, grad in gradients(model, SPEQ(), batch).items():
        assert grad is not None and grad.isfinite().all() and grad.abs().sum() > 0, name


def test_the_total_follows_the_equation(model, batch):
    method = SPEQ(8, 0.7, weight=3.0, temperature=2)
    penalty = sum(0.5 * q.decay * float(q.clip.detach()) ** 2 for q in act_quantizers(model).values())
    assert penalty > 0
    for step in range(2):
        z_s, z_t = logits(model, batch, train=True), at(model, batch, Stochastic(8, 0.7), step)
        losses = method(model, batch)
        near(losses.task, cross_entropy(z_s, batch[1]))
        near(losses.distill, literal.cosine(z_s, z_t, 2))
        near(losses.total, cross_entropy(z_s, batch[1]) + 3 * literal.cosine(z_s, z_t, 2) + penalty)


def test_the_penalty_changes_only_the_gradients_of_ranges(model, batch):
    free = spequant.prepare(small_network(), weight=SAWB(2), act=PACT(2, decay=0.0))
    free.load_state_dict(model.state_dict())
    with_penalty, without = gradients(model, Retrain(), batch), gradients(free, Retrain(), batch)
    for name, q in [(n, m) for n, m in model.named_modules() if isinstance(m, PACT)]:
        difference = with_penalty[f"{name}.clip"] - without[f"{name}.clip"]
        torch.testing.assert_close(difference, q.decay * q.clip.detach(), rtol=1e-2, atol=1e-6)


def test_the_teacher_differs_from_the_student_and_gives_no_gradient(model, batch):
    teacher = SPEQ().teach(model, batch)
    assert not teacher.requires_grad and teacher.grad_fn is None
    student = model(batch[0])
    assert student.requires_grad and (teacher - student.detach()).abs().max() > 1e-2
    losses = SPEQ()(model, batch)
    assert losses.distill > 1e-5 and losses.task > 0 and not losses.logits.requires_grad


def test_only_the_student_gets_gradient_from_the_distillation_loss(model, batch):
    calls = []

    def loss(student, teacher, temperature):
        calls.append((student.requires_grad, teacher.requires_grad))
        return kl(student, teacher, temperature)

    speq = SPEQ(loss=loss)
    losses = speq(model, batch)
    assert calls == [(True, False)]
    speq.step = 0
    teacher, student = speq.teach(model, batch), model(batch[0]).detach()
    assert float(losses.distill.detach()) == pytest.approx(float(kl(student, teacher)), rel=1e-5)


@pytest.mark.parametrize("mode", ["leave", "eval", "update"])
def test_running_statistics_in_the_teachers_pass(model, batch, mode):
    before = statistics(model)
    SPEQ(batch_norm=mode).teach(model, batch)
    assert same(before, statistics(model)) == (mode != "update")
    assert model.training and all(
        m.training and m.track_running_stats for m in model.modules() if isinstance(m, nn.BatchNorm2d)
    )


def test_the_teacher_uses_batch_statistics_and_in_eval_running_ones(model, batch):
    of_batch = at(model, batch, Fixed(8))
    of_running = at(model.eval(), batch, Fixed(8))
    model.train()
    left = SPEQ(probability=1.0).teach(model, batch)
    running = SPEQ(probability=1.0, batch_norm="eval").teach(model, batch)
    torch.testing.assert_close(left.double(), torch.tensor(of_batch), rtol=1.3e-6, atol=1e-5)
    torch.testing.assert_close(running.double(), torch.tensor(of_running), rtol=1.3e-6, atol=1e-5)
    assert (left - running).abs().max() > 1e-3


def test_an_inf_in_the_teachers_pass_leaves_the_statistics(model, batch):
    before = statistics(model)
    SPEQ().teach(model, (batch[0] * torch.inf, batch[1]))
    assert same(before, statistics(model))


@pytest.mark.parametrize("mode", ["leave", "eval"])
def test_statistics_are_restored_after_an_exception(model, batch, mode):
    class Fails(spequant.methods.tasks.Classification):
        def logits(self, model, batch):
            raise RuntimeError(f"after {super().logits(model, batch).shape}")

    before = statistics(model)
    with pytest.raises(RuntimeError, match="after"):
        SPEQ(batch_norm=mode, task=Fails()).teach(model, batch)
    assert same(before, statistics(model)) and all(m.training for m in model.modules())


def test_instance_norm_does_not_change_in_the_teachers_pass():
    model = nn.Sequential(
        nn.Conv1d(2, 4, 3), nn.InstanceNorm1d(4, track_running_stats=True), nn.Flatten(), nn.LazyLinear(3)
    )
    x = torch.randn(8, 2, 9)
    model(x)
    model = spequant.prepare(model, weight=SAWB(2), act=PACT(2), ends=2)
    spequant.calibrate(model, [x], samples=8)
    before = model[1].running_mean.clone()
    SPEQ().teach(model, (x, torch.zeros(8, dtype=torch.long)))
    assert torch.equal(before, model[1].running_mean)


def test_no_distillation_loss_if_teacher_and_student_are_equal(model, batch):
    assert abs(float(SPEQ(probability=0.0)(model, batch).distill.detach())) < 1e-6


def test_weight_zero_is_retrain(model, batch):
    speq, retrain = gradients(model, SPEQ(weight=0.0), batch), gradients(model, Retrain(), batch)
    assert all(torch.equal(speq[n], retrain[n]) for n in retrain)


def test_each_step_has_its_own_draw_and_can_be_repeated(model, batch):
    method = SPEQ()
    first, second = method.teach(model, batch), method.teach(model, batch)
    assert not torch.equal(first, second) and method.step == 2
    method.step = 0
    assert torch.equal(method.teach(model, batch), first)
    assert not torch.equal(SPEQ(seed=1).teach(model, batch), first)


def test_several_teacher_passes_are_averaged(model, batch):
    method = SPEQ(passes=3, temperature=2.0)
    soft = (method.teach(model, batch) / 2).softmax(-1)
    singles = SPEQ()
    each = torch.stack([(singles.teach(model, batch) / 2).softmax(-1) for _ in range(3)])
    torch.testing.assert_close(soft, each.mean(0))
    assert (each[0] - each[1]).abs().max() > 1e-4


def test_the_teacher_runs_without_the_wrapper_of_ddp(tmp_path, model, batch):
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        wrapped = nn.parallel.DistributedDataParallel(model)
        calls = {wrapped: 0, model: 0}
        for module in calls:
            module.register_forward_hook(lambda m, *_: calls.__setitem__(m, calls[m] + 1))
        SPEQ()(wrapped, batch).total.backward()
        assert calls == {wrapped: 1, model: 2}  # the student runs through the wrapper, the teacher without it
    finally:
        torch.distributed.destroy_process_group()


class HalfSteps(Quantizer):
    """A quantizer that a user defines, with a fixed range."""

    stored = False

    def bounds(self, x):
        return self.bounds_at(torch.tensor(1.5, device=x.device))


def test_quantizer_loss_policy_and_task_that_a_user_defines(floating, batch):
    class Ends:
        def draw(self, home, rng):
            return [8] * len(home)

    class Named:
        def logits(self, model, batch):
            return model(batch["image"])

        def loss(self, logits, batch):
            return F.cross_entropy(logits, batch["label"])

    model = spequant.prepare(floating, weight=SAWB(2), act=HalfSteps(2))
    images = {"image": batch[0], "label": batch[1]}
    spequant.calibrate(model, [images], samples=16, run=lambda m, b: m(b["image"]))
    method = SPEQ(policy=Ends(), loss=lambda s, t, temperature: (s - t).square().mean(), task=Named())
    losses = method(model, images)
    losses.total.backward()
    assert losses.distill > 0 and model.conv1.layer.weight.grad.abs().sum() > 0
    assert SPEQ(policy=Mix(), task=Named())(model, images).total.isfinite()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0}, "temperature is 0"),
        ({"weight": -1}, "weight is -1"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"weight": float("inf")}, "weight is inf"),
        ({"passes": 0}, "passes is 0"),
        ({"batch_norm": "off"}, "batch_norm is 'off'.* 'leave', 'update', 'eval'"),
        ({"high_bits": 0}, "high_bits is 0"),
    ],
)
def test_bad_settings_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        SPEQ(**options)


@pytest.mark.parametrize(
    ("method", "bits"), [(SPEQ(), 8), (SPEQ(high_bits=4), 4), (SPEQ(policy=Mix((2, 3))), 3), (SPEQ(high_bits=2), 6)]
)
def test_a_network_that_no_draw_changes_is_refused(method, bits, floating, batch):
    model = calibrated(spequant.prepare(floating, weight=SAWB(2), act=PACT(bits)), batch)
    with pytest.raises(ValueError, match=rf"at most {method.policy.highest} bits.* {bits} or more"):
        method(model, batch)
    one_lower = calibrated(
        spequant.prepare(floating, weight=SAWB(2), act=PACT(bits), overrides={"layer1.0.conv2": 1}), batch
    )
    assert method(one_lower, batch).total.isfinite()
