"""Block replacement: its total against the equation with one, two ... stages replaced; the teacher stays unchanged."""

import copy

import pytest

from reference import losses as literal
from spequant.methods import BlockReplacement
from support.equations import cross_entropy, grads, logits, near, numbers


def test_the_total_follows_the_equation(model, floating, batch):
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"weight": -1.0}, r"weight is -1\.0"), ({"stages": ["conv1"]}, r"stages is \('conv1',\)")],
)
def test_bad_settings_are_named(settings, message, floating):
    with pytest.raises(ValueError, match=message):
        BlockReplacement(floating, **settings)
