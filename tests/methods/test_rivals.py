"""The rivals: each method's total against its equation written out in numpy; what learns; phases; whole small runs."""

import copy
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from reference import losses as literal
from spequant.kinds import head_of
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
)
from spequant.methods.base import trained_by
from spequant.methods.member_ensemble import _ensemble
from spequant.methods.parts import Recorder, replaced, rounded, stages_of
from spequant.models import resnet8, vgg16_bn
from spequant.precision import LowBit, precision
from spequant.quantizers import LSQ, MinMax
from spequant.recipes import RECIPES, run
from spequant.recipes.assembly import assemble
from spequant.recipes.methods import BUILDERS
from spequant.recipes.schema import MethodChoice
from spequant.tasks import SpanExtraction
from spequant.train import (
    TrainingState,
    make_accelerator,
    make_optimizer,
    make_schedule,
    parameter_groups,
    train_step,
)

RIVALS = [n for n in BUILDERS if n not in ("retrain", "speq", "distill", "speq-distill")]


@pytest.fixture
def batch():
    return torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))


@pytest.fixture
def floating():
    return resnet8().train()


def quantized(floating, batch, bits):
    model = spequant.prepare(floating, weight=LSQ(bits), act=LSQ(bits), residual=MinMax(8))
    spequant.calibrate(model, [batch], samples=16)
    return model.train()


@pytest.fixture
def model(floating, batch):
    return quantized(floating, batch, 2)


def teachers(floating, batch):
    return {4: quantized(floating, batch, 4), 8: quantized(floating, batch, 8)}


def numbers(logits):
    return logits.detach().double().numpy()


def cross_entropy(z, labels):
    return -np.log(literal.softmax(z)[np.arange(len(z)), labels.numpy()]).mean()


def logits(network, batch, *, train):
    """Of a copy, so that nothing is left behind."""
    return numbers(copy.deepcopy(network).train(train)(batch[0]))


def near(tensor, value):
    assert float(tensor.detach()) == pytest.approx(value, rel=1e-4, abs=1e-6)


def grads(network):
    return [p.grad is not None and bool(p.grad.abs().sum() > 0) for p in network.parameters()]


@pytest.mark.parametrize("joint", [False, True])
def test_apprentice(joint, model, floating, batch):
    method = Apprentice(floating, joint=joint)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=joint)
    losses = method(model, batch)
    soft = -(literal.softmax(z_t) * np.log(literal.softmax(z_s))).sum(-1).mean()
    expected = 0.5 * cross_entropy(z_s, batch[1]) + 0.5 * soft + joint * cross_entropy(z_t, batch[1])
    near(losses.total, expected)
    near(losses.distill, soft)
    losses.total.backward()
    assert all(grads(method.teacher)) if joint else not any(grads(method.teacher))
    assert (trained_by(method) is None) is not joint and not any(grads(floating))


def test_apprentices_teacher_learns_nothing_from_the_student(model, floating, batch):
    method = Apprentice(floating, joint=True, teacher_weight=0.0)
    method(model, batch).total.backward()
    assert not any(grads(method.teacher))


def test_qkds_phases(model, floating, batch):
    method = QKD(floating, steps=9)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=True)
    hard = cross_entropy(z_s, batch[1])
    seen = []
    for step in range(9):
        method.step = step
        model.zero_grad()
        method.trained.zero_grad()
        kept = copy.deepcopy(model.state_dict())
        losses = method(model, batch)
        losses.total.backward()
        model.load_state_dict(kept)
        if step < 3:
            near(losses.total, hard)
            assert float(losses.distill) == 0
        elif step < 6:
            both = literal.kl(z_s, z_t, 2.0) + literal.kl(z_t, z_s, 2.0)
            near(losses.total, hard + cross_entropy(z_t, batch[1]) + both)
        seen.append((any(grads(method.trained)), method.trained.training))
    assert seen == [(False, False)] * 3 + [(True, True)] * 3 + [(False, False)] * 3
    z_t = logits(method.trained, batch, train=False)
    near(losses.total, hard + literal.kl(z_s, z_t, 2.0))


def test_sqakd_reads_no_labels(model, floating, batch):
    method = SQAKD(floating)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=False)
    losses = method(model, (batch[0],))
    near(losses.total, literal.kl(z_s, z_t, 4.0))
    assert float(losses.task) == 0


def test_qfd(model, floating, batch):
    method = QFD(floating, bits=3)
    features = {}
    for name, network, train in (("s", model, True), ("t", floating, False)):
        network = copy.deepcopy(network).train(train)
        network.linear.register_forward_pre_hook(lambda m, args, name=name: features.update({name: args[0]}))
        features[name + "z"] = network(batch[0])
    f_t = numbers(features["t"])
    step = f_t.max() / 7  # average pooled, after a relu: no value below zero
    target = np.round(f_t / step) * step
    distill = ((numbers(features["s"]) - target) ** 2).mean()
    losses = method(model, batch)
    near(losses.distill, distill)
    near(losses.total, cross_entropy(numbers(features["sz"]), batch[1]) + 0.5 * distill)
    losses.total.backward()
    assert not any(grads(method.teacher)) and not model.linear._forward_pre_hooks


def test_gslr(model, floating, batch):
    method = GSLR(floating, steps=4, weight=0.8)
    z_s, z_t = logits(model, batch, train=True), logits(floating, batch, train=False)
    hard, soft = cross_entropy(z_s, batch[1]), literal.kl(z_s, z_t, 2.0)
    for w in (0.8, 0.6, 0.4, 0.2, 0.0, 0.0):
        near(method(model, batch).total, (1 - w) * hard + w * soft)


def test_cmt_kd(model, floating, batch):
    several = teachers(floating, batch)
    method = CMTKD(floating, several)
    assert method.stages == ("conv1", "layer1", "layer2", "layer3", "linear")
    with torch.no_grad():
        for i, name in enumerate(method.stages):
            method.trained.get_submodule(name).importance.copy_(torch.tensor([0.3 * i, -0.2]))
    whole, student = copy.deepcopy(method.trained), copy.deepcopy(model)
    maps = {"t": [], "s": []}

    def area(x):
        flat = (x.detach().double() ** 2).mean(1).flatten(1)
        return (flat / flat.norm(dim=1, keepdim=True)).numpy()

    def fused(name):
        def forward(module, args, output):
            weights = literal.softmax(module.importance.detach().double().numpy())
            parts = [copy.deepcopy(s)(args[0]) for s in copy.deepcopy(module).stages]
            if name != "linear":
                parts = [rounded(p, b) for p, b in zip(parts, (4, 8), strict=True)]
                maps["t"].append(area(output))
            expected = sum(w * p for w, p in zip(weights.tolist(), parts, strict=True))
            torch.testing.assert_close(output, expected)

        return forward

    for name in method.stages:
        whole.get_submodule(name).register_forward_hook(fused(name))
        if name != "linear":
            student.get_submodule(name).register_forward_hook(lambda m, a, y: maps["s"].append(area(y)))
    z_t, z_s = numbers(whole(batch[0])), numbers(student(batch[0]))
    features = np.mean([((a - b) ** 2).mean() for a, b in zip(maps["s"], maps["t"], strict=True)])
    losses = method(model, batch)
    expected = cross_entropy(z_s, batch[1]) + cross_entropy(z_t, batch[1]) + 100 * features
    near(losses.total, expected + 0.5 * (literal.kl(z_s, z_t, 1.0) + literal.kl(z_t, z_s, 1.0)))
    assert features > 1e-6
    losses.total.backward()
    learns = {n for n, p in method.trained.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert {f"{s}.importance" for s in method.stages[:-1]} <= learns  # the heads, of 8 bits both, are equal so far
    assert not any(any(grads(t)) for t in several.values())


def test_block_replacement(model, floating, batch):
    method = BlockReplacement(floating, temperature=2.0, weight=0.5)
    z_s, z_f = logits(model, batch, train=True), logits(floating, batch, train=False)
    modules = ["conv1", "layer1", "layer2", "layer3", "linear"]
    before = [id(m) for m in method.teacher.modules()]
    for step in range(5):
        count = 1 + step % 4
        mixture, student = copy.deepcopy(floating).eval(), copy.deepcopy(model)
        for name in modules[:count]:
            setattr(mixture, name, student.get_submodule(name))
        z_m = numbers(mixture(batch[0]))
        counted = {n: b.clone() for n, b in model.named_buffers() if "num_batches" in n}
        losses = method(model, batch)
        pull = literal.kl(z_s, z_f, 2.0) + literal.kl(z_s, z_m, 2.0)
        near(losses.total, cross_entropy(z_s, batch[1]) + cross_entropy(z_m, batch[1]) + 0.5 * pull)
        after = dict(model.named_buffers())
        assert all(after[n] == b + 1 for n, b in counted.items())  # the mixed pass leaves batch norm's statistics
    assert [id(m) for m in method.teacher.modules()] == before
    losses.total.backward()
    assert not any(grads(method.teacher))


def at(model, batch, bits):
    model = copy.deepcopy(model)
    with precision(model, LowBit(bits)):
        return numbers(model(batch[0]))


def test_member_ensemble(model, batch):
    method = MemberEnsemble((3, 8), temperature=2.0, weight=0.5)
    z_l, z = logits(model, batch, train=True), [at(model, batch, b) for b in (3, 8)]
    score = np.stack([(z_l * m).sum(-1) for m in z], -1) / np.sqrt(10)
    attention = literal.softmax(score)
    ensemble = sum(attention[:, i : i + 1] * m for i, m in enumerate(z))
    losses = method(model, batch)
    theirs = np.mean([cross_entropy(m, batch[1]) for m in z])
    near(losses.distill, literal.kl(z_l, ensemble, 2.0))
    near(losses.total, cross_entropy(z_l, batch[1]) + theirs + 0.5 * literal.kl(z_l, ensemble, 2.0))


def test_joint_bits(model, batch):
    method = JointBits((3, 8), temperature=2.0, weight=0.5)
    z = [logits(model, batch, train=True), at(model, batch, 3), at(model, batch, 8)]
    losses = method(model, batch)
    labels = np.mean([cross_entropy(m, batch[1]) for m in z])
    pull = np.mean([literal.kl(m, z[2], 2.0) for m in z[:2]])
    near(losses.total, labels + 0.5 * pull)
    losses.total.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_joint_bits_below_the_models_own(floating, batch):
    model = quantized(floating, batch, 4)
    z = [logits(model, batch, train=True), at(model, batch, 2), at(model, batch, 3)]
    losses = JointBits((2, 3, 4))(model, batch)  # 4 bits are run once, and teach
    labels = np.mean([cross_entropy(m, batch[1]) for m in z])
    near(losses.distill, np.mean([literal.kl(m, z[0], 1.0) for m in z[1:]]))
    near(losses.total, labels + losses.distill.item())
    with pytest.raises(ValueError, match="model has no activation quantizer"):
        JointBits()(floating, batch)


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
    sure = torch.tensor([[300.0, 0.0, -torch.inf]])  # attention is 1 and 0, and 0 times -inf is no number
    found = _ensemble(sure, [sure, -sure.abs().masked_fill(sure.isinf(), torch.inf)])
    assert found[0, :2].isfinite().all() and found[0, 2] == -torch.inf


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda f: Apprentice(f, soft_weight=-1.0), "soft_weight is -1.0; expected a number of 0 or more"),
        (lambda f: QKD(f, steps=0), "steps is 0; expected how many calls"),
        (lambda f: QKD(f, steps=9, shares=(0.8, 0.4)), r"shares is \(0.8, 0.4\); expected two numbers"),
        (lambda f: SQAKD(f, temperature=0.0), "temperature is 0.0"),
        (lambda f: QFD(f, bits=9), "bits is 9"),
        (lambda f: QFD(f, bits=1), "bits is 1; expected"),
        (lambda f: QFD(f, bits=None), "bits is None; expected"),
        (lambda f: CMTKD(f, {1: f}), "teachers' bits is 1; expected"),
        (lambda f: GSLR(f, steps=9, weight=1.5), "weight is 1.5; expected the soft loss's share"),
        (lambda f: CMTKD(f, {}), "teachers is empty"),
        (lambda f: CMTKD(nn.Sequential(nn.Linear(2, 2)), {4: f}), "expected 3 or more: name modules"),
        (lambda f: MemberEnsemble(()), "widths is empty"),
        (lambda f: MemberEnsemble((9,)), "widths is 9"),
        (lambda f: JointBits((8, 4)), r"widths is \(8, 4\); expected activation bits in rising order"),
        (lambda f: BlockReplacement(f, weight=-1.0), "weight is -1.0"),
        (lambda f: BlockReplacement(f, stages=["conv1"]), r"stages is \('conv1',\); expected two modules or more"),
        (lambda f: CMTKD(f, {4: f}, stages=["conv1", "fc"]), "no module 'fc'"),
    ],
)
def test_bad_settings_are_named(make, message, floating):
    with pytest.raises(ValueError, match=message):
        make(floating)


def test_stages_and_head_are_found():
    assert stages_of(vgg16_bn()) == (*(f"stages.{i}" for i in range(5)), "linear")
    assert stages_of(nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), nn.Linear(2, 2))) == (
        "0.0",
        "0.2",
        "1",
    )
    assert head_of(vgg16_bn()) == stages_of(vgg16_bn())[-1]
    with pytest.raises(ValueError, match="has no linear layer"):
        head_of(nn.ReLU())
    with pytest.raises(ValueError, match=r"no module 'fc'; there are conv1"), Recorder(["fc"]).on(resnet8()):
        pass
    with pytest.raises(RuntimeError, match="linear did not run"), Recorder(["linear"]).on(resnet8()):
        pass
    network = resnet8()
    own = network.linear
    with pytest.raises(KeyError), replaced(network, {"linear": nn.Identity()}) as changed:
        assert isinstance(changed.linear, nn.Identity)
        raise KeyError
    assert network.linear is own


COMPILED = """
import copy, torch, spequant
from spequant.methods import CMTKD, QFD, JointBits
from spequant.models import resnet8
from spequant.quantizers import LSQ
from spequant.train import Compiled
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


def state_of(name_of_method, floating, batch, model):
    method = {
        "qkd": lambda: QKD(floating, steps=6),
        "cmt-kd": lambda: CMTKD(floating, teachers(floating, batch)),
        "gslr": lambda: GSLR(floating, steps=6),
        "block-replacement": lambda: BlockReplacement(floating),
    }[name_of_method]()
    partner = trained_by(method)
    optimizer = make_optimizer(
        "sgd",
        parameter_groups(nn.ModuleList([model, partner]) if partner else model, lr=0.05, weight_decay=1e-4),
    )
    return TrainingState(model, method, optimizer, make_schedule("cosine", optimizer, 6))


@pytest.mark.parametrize("name", ["qkd", "cmt-kd", "gslr", "block-replacement"])
def test_a_snapshot_in_the_middle_leads_to_the_very_same_end(name, floating, batch):
    batches = [(torch.randn(16, 3, 8, 8), torch.randint(0, 10, (16,))) for _ in range(6)]
    accelerator = make_accelerator()
    torch.manual_seed(1)
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


@pytest.fixture(scope="module")
def digits_float(tmp_path_factory):
    folder = tmp_path_factory.mktemp("float") / "run"
    recipe = RECIPES["digits-float"]()
    run(replace(recipe, train=replace(recipe.train, compile=False, epochs=6)), folder)
    return folder


@pytest.mark.parametrize(("name", "weight"), [*((name, "sawb") for name in RIVALS), ("cmt-kd", "apot")])
def test_a_whole_run(name, weight, tmp_path, digits_float):
    recipe = RECIPES["digits-w2a2-speq"]()
    recipe = replace(recipe, quant=replace(recipe.quant, weight=weight))
    recipe = replace(
        recipe,
        network=replace(recipe.network, weights=digits_float),
        data=replace(recipe.data, images=256),
        method=replace(recipe.method, name=name, temperature=None),
        train=replace(recipe.train, epochs=1, compile=False),
    )
    result = run(recipe, tmp_path / "run")
    assert result["test_accuracy"] > 60
    assert run(recipe, tmp_path / "run", resume=True) == result  # the recipe is read back, widths and all


def test_a_float_students_teacher_is_another_network(tmp_path, digits_float):
    base = RECIPES["digits-float"]()
    recipe = replace(
        base,
        data=replace(base.data, images=256),
        method=MethodChoice("distill", teacher=digits_float),
        train=replace(base.train, epochs=1, compile=False),
    )
    made = assemble(recipe, make_accelerator("fp32", device="cpu"))
    student, teacher = made.state.model, made.state.method.teacher
    assert not torch.equal(student.linear.weight, teacher.linear.weight)  # one has learned, the other starts
    recipe = replace(recipe, network=replace(recipe.network, weights=digits_float), method=MethodChoice("distill"))
    made = assemble(recipe, make_accelerator("fp32", device="cpu"))
    snapshot = made.state.capture()
    tensors = {k: v + 1 if k.startswith("model.") and v.is_floating_point() else v for k, v in snapshot.tensors.items()}
    again = assemble(recipe, make_accelerator("fp32", device="cpu"), replace(snapshot, tensors=tensors))
    theirs, before = (m.state.method.teacher.linear.weight for m in (again, made))
    assert torch.equal(theirs, before) and torch.equal(again.state.model.linear.weight, before + 1)
