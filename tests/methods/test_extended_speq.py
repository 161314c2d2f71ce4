"""ExtendedSPEQ: its equation in numpy, its schedules, checkpoints and compiled models."""

import copy
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from reference import losses as literal
from spequant.methods import ExtendedSPEQ
from spequant.methods.base import trained_by
from spequant.policies import Mix, Stochastic, precision
from spequant.train import TrainingState, make_accelerator, make_optimizer, make_schedule, parameter_groups, train_step
from support.equations import cross_entropy


def forward(network, x, policy, step):
    """Return logits and penultimate feature of a copy; policy None: at the home precision."""
    network, features = copy.deepcopy(network), []
    network.linear.register_forward_pre_hook(lambda m, args: features.append(args[0].detach().double().numpy()))
    if policy is None:
        return network(x).detach().double().numpy(), features[0]
    with precision(network, policy, step=step):
        return network(x).detach().double().numpy(), features[0]


def cosine_distance(a, b):
    return np.mean([1 - x @ y / np.linalg.norm(x) / np.linalg.norm(y) for x, y in zip(a, b, strict=True)])


def test_every_term_follows_the_equation(model, batch):
    decay, steps = 0.7, 4
    average = copy.deepcopy(model)
    settings = {"probability_end": 0.1, "temperature_end": 1.0, "head": "linear", "feature_weight": 0.5}
    speq = spequant.SPEQ(probability=0.9, temperature=3.0, weight=2.0)
    method = ExtendedSPEQ(speq, steps=steps, average=average, decay=decay, **settings)
    mean = {n: p.detach().double() for n, p in model.named_parameters()}
    for step in range(steps + 2):
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
        mean = {n: decay * mean[n] + (1 - decay) * p.detach().double() for n, p in model.named_parameters()}
        done = min(1, step / steps)
        policy, t = Stochastic(8, 0.9 - 0.8 * done), 3 - 2 * done
        teacher = copy.deepcopy(model)
        with torch.no_grad():
            for n, p in teacher.named_parameters():
                p.copy_(mean[n])
        z_t, f_t = forward(teacher, batch[0], policy, step)
        z_s, f_s = forward(model, batch[0], None, step)
        losses = method(model, batch)
        total = cross_entropy(z_s, batch[1]) + 2 * literal.cosine(z_s, z_t, t) + 0.5 * cosine_distance(f_s, f_t)
        assert float(losses.total.detach()) == pytest.approx(total, rel=2e-3)
        assert float(losses.distill.detach()) == pytest.approx(literal.cosine(z_s, z_t, t), rel=2e-3, abs=1e-5)
    losses.total.backward()
    assert all(p.grad is not None for p in model.parameters()) and all(p.grad is None for p in average.parameters())
    for n, p in average.named_parameters():
        assert torch.allclose(p.double(), mean[n], atol=1e-5)


def test_without_additions_it_equals_speq(model, batch):
    plain, extended = spequant.SPEQ(), ExtendedSPEQ(spequant.SPEQ(), steps=5)
    for _ in range(3):
        assert torch.equal(plain(model, batch).total, extended(model, batch).total)
    assert extended.state_dict() == {"step": 3} and trained_by(extended) is None


def test_the_teachers_feature_gets_no_gradient(model, batch):
    method = ExtendedSPEQ(spequant.SPEQ(weight=0.0), steps=5, head="linear", feature_weight=1.0)
    z_s, f_s = forward(model, batch[0], None, 0)
    _, f_t = forward(model, batch[0], Stochastic(), 0)
    losses = method(model, batch)
    expected = cross_entropy(z_s, batch[1]) + cosine_distance(f_s, f_t)
    assert float(losses.total.detach()) == pytest.approx(expected, rel=1e-3)
    feature = torch.tensor(f_s, requires_grad=True)
    (1 - torch.cosine_similarity(feature, torch.tensor(f_t), dim=1)).mean().backward()
    inputs = []
    model.zero_grad()
    hook = model.linear.register_forward_pre_hook(lambda m, args: (args[0].retain_grad(), inputs.append(args[0]))[1])
    method.speq.step = 0
    total, task = (losses := method(model, batch)).total, losses.task
    (total - task).backward()
    hook.remove()
    assert inputs[0].grad is None  # the teacher's pass
    torch.testing.assert_close(inputs[1].grad.double(), feature.grad, rtol=1e-2, atol=1e-6)


COMPILED = """
import copy, torch, spequant
from torch._dynamo.utils import counters
from spequant.methods import ExtendedSPEQ
from spequant.models import resnet8
from spequant.quantizers import LSQ
from spequant.train import Compiled
torch.manual_seed(0)
batch = torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))
model = spequant.prepare(resnet8(), weight=LSQ(4), act=LSQ(4))
spequant.calibrate(model, [batch], samples=16)
model.train()
for averaged, most in ((False, 1), (True, 2)):
    def make():
        average = copy.deepcopy(model) if averaged else None
        return ExtendedSPEQ(spequant.SPEQ(), steps=4, average=average, head="linear", feature_weight=1.0)
    eager, method, wrapped = make()(copy.deepcopy(model), batch), make(), Compiled(copy.deepcopy(model)).train()
    if averaged:
        method.teacher = Compiled(method.teacher).train()
    counters.clear()
    for step in range(3):
        losses = method(wrapped, batch)
        losses.total.backward()
        if step == 0:
            torch.testing.assert_close(losses.total, eager.total, rtol=1e-2, atol=1e-3)
    assert 1 <= counters["stats"]["unique_graphs"] <= most, counters["stats"]
print("done")
"""


@pytest.mark.slow
def test_a_compiled_model_has_one_graph_for_both_passes():
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["done"], done.stderr


def test_resuming_from_a_snapshot_gives_identical_weights(model, batch):
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))) for _ in range(6)]
    accelerator, ends = make_accelerator(), []

    def state_of(network):
        method = ExtendedSPEQ(
            spequant.SPEQ(),
            steps=6,
            average=copy.deepcopy(network),
            decay=0.5,
            temperature_end=3.0,
            probability_end=0.1,
        )
        optimizer = make_optimizer("sgd", parameter_groups(network, lr=0.05, weight_decay=1e-4))
        return TrainingState(network, method, optimizer, make_schedule("cosine", optimizer, 6))

    again = copy.deepcopy(model)
    state = state_of(model)
    for i, step_batch in enumerate(batches):
        if i == 3:
            snapshot = state.capture()
        train_step(state, step_batch, accelerator)
    ends.append((model.state_dict(), state.partner.state_dict()))
    other = state_of(again)
    other.restore(snapshot)
    for step_batch in batches[3:]:
        train_step(other, step_batch, accelerator)
    ends.append((again.state_dict(), other.partner.state_dict()))
    assert all(torch.equal(v, resumed[k]) for first, resumed in zip(*ends, strict=True) for k, v in first.items())
    # The average follows the network, and differs from it.
    assert any(not torch.equal(v, ends[0][0][k]) for k, v in ends[0][1].items())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: ExtendedSPEQ(s, steps=0), "steps is 0"),
        (lambda s: ExtendedSPEQ(s, steps=1, temperature_end=0.0), "temperature_end is 0.0"),
        (lambda s: ExtendedSPEQ(s, steps=1, feature_weight=-1.0), "feature_weight is -1.0"),
        (lambda s: ExtendedSPEQ(s, steps=1, feature_weight=1.0), "feature_weight is 1.0 and head is None"),
        (lambda s: ExtendedSPEQ(s, steps=1, decay=1.0), "decay is 1.0"),
        (
            lambda s: ExtendedSPEQ(s, steps=1, probability_end=1.5),
            "probability_end is 1.5",
        ),
        (
            lambda s: ExtendedSPEQ(spequant.SPEQ(policy=Mix()), steps=1, probability_end=0.5),
            "probability_end is 0.5.* draws by Mix",
        ),
        (
            lambda s: ExtendedSPEQ(spequant.SPEQ(batch_norm="eval"), steps=1, average=nn.Linear(1, 1)),
            "batch_norm is 'eval' with average",
        ),
    ],
)
def test_bad_settings_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(spequant.SPEQ())
