"""Networks that write in place: an integer program has the codes of the network itself, or is refused by name."""

import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from spequant.deploy import Twin, lower
from spequant.deploy.operations import Weighted
from support.exact import codes_read, exact

STEPS = {
    "relu": lambda net, a, b: F.relu(a),
    "relu module": lambda net, a, b: net.relu(a),
    "relu6 module": lambda net, a, b: net.six(a),
    "F.relu(inplace)": lambda net, a, b: F.relu(a, inplace=True),
    "F.relu(True)": lambda net, a, b: F.relu(a, True),
    "F.relu_": lambda net, a, b: F.relu_(a),
    "relu_": lambda net, a, b: a.relu_(),
    "hardtanh_": lambda net, a, b: F.hardtanh(a, -1.0, 1.0, inplace=True),
    "clamp_": lambda net, a, b: a.clamp_(-1.0, 2.0),
    "torch.clamp_": lambda net, a, b: torch.clamp_(a, 0.5),
    "add": lambda net, a, b: a + b,
    "iadd": lambda net, a, b: operator.iadd(a, b),
    "add_": lambda net, a, b: a.add_(b),
    "mul_": lambda net, a, b: a.mul_(b).clamp_(-4.0, 4.0),
    "imul": lambda net, a, b: operator.imul(a, b).clamp(-4.0, 4.0),
    "dropout": lambda net, a, b: net.drop(a),
    "F.dropout": lambda net, a, b: F.dropout(a, 0.5, net.training, True),
    "identity": lambda net, a, b: net.same(a),
    "contiguous": lambda net, a, b: a.contiguous(),
    "statement": lambda net, a, b: (net.relu(a), b)[1],
    "view": lambda net, a, b: a[:, :, ::2, ::2],
    "write to a view": lambda net, a, b: (a[:, :, ::2, ::2].relu_(), a)[1],
}
"""One step of a network on two of the tensors before it; "view" makes one that is not of their shape."""
PARTS = ("view", "write to a view")


class Writing(nn.Module):
    """plan: (step, which tensors before it); "conv" is a layer of its own. All tensors have one shape."""

    def __init__(self, plan):
        super().__init__()
        self.plan = plan
        self.first, self.last = nn.Conv2d(2, 3, 1), nn.Conv2d(3, 2, 1)
        self.convs = nn.ModuleList(nn.Conv2d(3, 3, 1) for name, *_ in plan if name == "conv")
        self.relu, self.six = nn.ReLU(inplace=True), nn.ReLU6(inplace=True)
        self.drop, self.same = nn.Dropout(0.5, inplace=True), nn.Identity()

    def forward(self, x):
        values, convs = [self.first(x)], iter(self.convs)
        for name, i, j in self.plan:
            a, b = values[i % len(values)], values[j % len(values)]
            out = next(convs)(a) if name == "conv" else STEPS[name](self, a, b)
            values.append(a if name == "view" else out)
        return self.last(values[-1] + values[len(values) // 2])


def as_the_network(model, x):
    """Whether the integer program has the network's codes and values; None: it is refused by name."""
    before = x.clone()
    try:
        program = lower(model, x)
    except ValueError as error:
        assert "in place" in str(error) and str(error).partition(":")[0].isidentifier(), error
        return None
    assert torch.equal(x, before)
    read, values = codes_read(model, x), Twin(program).everything(x)
    with torch.no_grad():
        same = torch.equal(Twin(program)(x), model(x.clone()))
    layers = [op for op in program.ops if isinstance(op, Weighted) and op.name in read]
    assert layers
    return same and all(torch.equal(values[op.inputs[0]], read[op.name]) for op in layers)


STEP = st.tuples(st.sampled_from(["conv", *STEPS]), st.integers(0, 5), st.integers(0, 5))


@settings(max_examples=40, deadline=None, derandomize=True)
@given(plan=st.lists(STEP, min_size=1, max_size=6), residual=st.booleans())
def test_random_networks_with_steps_in_place(plan, residual):
    torch.manual_seed(0)
    x = torch.randn(8, 2, 4, 4)
    same = as_the_network(exact(Writing(plan), x, residual), x)
    assert same or (same is None and any(name in PARTS for name, *_ in plan)), plan


@pytest.mark.parametrize("name", [n for n in STEPS if n not in PARTS])
def test_what_is_read_after_a_step_in_place_is_what_that_has_left(name):
    """s.c(s.relu(x)) + x and its kin: the tensor is read again, by its first name and by another one."""
    x = torch.randn(8, 2, 4, 4)
    for plan in ([("conv", 0, 0), (name, 0, 1), ("conv", 2, 0), ("add", 0, 3)], [("identity", 0, 0), (name, 0, 0)]):
        assert as_the_network(exact(Writing(plan), x), x)


class Views(nn.Module):
    def __init__(self, forward):
        super().__init__()
        self.own, self.first, self.last = forward, nn.Conv2d(2, 3, 1), nn.Linear(12, 2)

    def forward(self, x):
        return self.own(self, x)


def flat_then_written(net, x):
    y = net.first(x)
    flat = torch.flatten(y, 1)
    y.relu_()
    return net.last(flat)


def written_when_flat(net, x):
    y = net.first(x)
    torch.flatten(y, 1).relu_()
    return net.last(torch.flatten(y, 1))


def added_into(net, x):
    y = net.first(x)
    torch.add(y, y, out=y)
    return net.last(torch.flatten(y, 1))


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (flat_then_written, r"^last: .* flatten, .* relu_ .* in place"),
        (written_when_flat, r"^flatten_1: .* first, .* relu_ .* in place"),
        (added_into, r"^add: out= "),
    ],
)
def test_views_of_what_is_written_to_and_out_are_named(forward, message):
    x = torch.randn(8, 2, 2, 2)
    with pytest.raises(ValueError, match=message):
        lower(exact(Views(forward), x), x)


def test_a_view_that_is_not_read_again_is_followed():
    def forward(net, x):
        return net.last(torch.flatten(net.first(x), 1).relu_())

    x = torch.randn(8, 2, 2, 2)
    assert as_the_network(exact(Views(forward), x), x)


def test_a_network_that_writes_to_its_input_leaves_the_users_alone():
    def forward(net, x):
        return net.last(torch.flatten(net.first(x.clamp_(-0.5, 0.5)) + net.first(x), 1))

    x = torch.randn(8, 2, 2, 2)
    assert as_the_network(exact(Views(forward), x.clone()), x)


class Into(nn.Module):
    """A marked addition that writes to its branch."""

    residual_addition = True

    def forward(self, branch, shortcut):
        branch += shortcut
        return branch


class Marked(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.add, self.last = nn.Conv2d(2, 3, 1), Into(), nn.Conv2d(3, 2, 1)

    def forward(self, x):
        y = self.first(x)
        return self.last(self.add(torch.relu(y), y) + y)


def test_a_marked_addition_may_write_to_its_branch():
    x = torch.randn(8, 2, 4, 4)
    assert as_the_network(exact(Marked(), x, residual=True), x)


def test_inside_inference_mode_writes_are_followed_as_well():
    x = torch.randn(8, 2, 4, 4)
    model = exact(Writing([("conv", 0, 0), ("relu_", 0, 0), ("conv", 2, 0), ("iadd", 0, 3), ("add", 0, 1)]), x)
    with torch.inference_mode():
        assert as_the_network(model, x) and as_the_network(model, x.clone())
