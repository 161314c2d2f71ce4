"""What stands between the layers and gets a quantizer for integers throughout."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import spequant
from spequant.deploy.operations import READ
from spequant.layers import QuantizedAdd, QuantizedLayer, act_quantizers
from spequant.networks import QUANTIZABLE
from spequant.preparation import between
from spequant.preparation.additions import find_additions
from spequant.preparation.between import groups_between
from spequant.preparation.tracing import DROPOUT_NAMES
from spequant.quantizers import PACT, SAWB, Quantizer


class Excited(nn.Module):
    """SiLU behind batch norm, and squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.curve = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU()
        self.squeeze, self.gate, self.head = nn.Conv2d(4, 4, 1), nn.Sigmoid(), nn.Linear(4, 2)

    def forward(self, x):
        x = self.curve(self.norm(self.conv(x)))
        x = x * self.gate(self.squeeze(x.mean((2, 3), keepdim=True)))
        return self.head(x.mean((2, 3)))


def test_inputs_of_functions_and_factors_are_found():
    names = {name for group in groups_between(Excited()) for name in group}
    assert {"norm", "squeeze", "gate", "curve"} <= names and "head" not in names


def test_between_gives_them_its_bits_and_none_leaves_them_float():
    x = torch.randn(64, 3, 8, 8)
    model = spequant.prepare(Excited(), weight=SAWB(4), act=PACT(4), between=6)
    bits = {name: q.bits for name, q in act_quantizers(model).items()}
    assert bits["norm.output"] == 6
    spequant.calibrate(model, [x], samples=64)
    assert not spequant.check_export(model, x[:1], "onnx").refused
    plain = spequant.prepare(Excited(), weight=SAWB(4), act=PACT(4))
    assert not any(".output" in name for name in act_quantizers(plain))


class Everyday(nn.Module):
    """A sum of what ReLU leaves as a function, parts in a list, lines between pixels, a sigmoid at the end."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(6, 2, 1)
        self.up, self.gate, self.last = nn.Upsample(scale_factor=2, mode="bilinear"), nn.Sigmoid(), nn.Sigmoid()

    def forward(self, x):
        parts = list((F.relu(self.a(x)) + F.relu(self.b(x))).chunk(2, 1))
        y = torch.cat([*parts, parts[0]], 1)
        return self.last(self.c(y)), self.up(self.c(y))


def test_sums_of_functions_and_functions_that_are_outputs_are_found():
    groups = groups_between(Everyday())
    assert ["a"] in groups and ["b"] in groups and ["last"] in groups


def test_timms_batch_norm_has_its_function_behind_a_grid():
    layers = pytest.importorskip("timm.layers")
    norms = [layers.BatchNormAct2d(4, act_layer=act) for act in (nn.SiLU, nn.ReLU)]
    network = nn.Sequential(nn.Conv2d(3, 4, 1), norms[0], nn.Conv2d(4, 4, 1), norms[1], nn.Conv2d(4, 2, 1))
    assert groups_between(network) == [["1.drop"]]
    assert str(spequant.check_export(network, torch.randn(2, 3, 4, 4))) == "--to onnx: integers throughout"


def test_where_it_cannot_be_traced_a_warning_says_so():
    class Branching(Excited):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    with pytest.warns(UserWarning, match="between=None"):
        spequant.prepare(Branching(), weight=SAWB(4), act=PACT(4), residual=None, between=8)


class Grown(nn.Module):
    """A shortcut to the first channels only, as of ReXNet: a sum that no module makes."""

    def __init__(self):
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 4, 1), Widening(), nn.Linear(6, 2)

    def forward(self, x):
        return self.head(self.block(F.relu(self.stem(x))).mean((2, 3)))


class Widening(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 6, 3, padding=1)

    def forward(self, x):
        y = self.conv(x)
        return torch.cat([y[:, :4] + x, y[:, 4:]], 1)


def test_where_no_module_makes_what_is_concatenated_the_concatenation_is_found():
    assert ["block"] in groups_between(Grown())
    x = torch.randn(64, 3, 8, 8)
    model = spequant.prepare(Grown(), weight=SAWB(4), act=PACT(4), between=8)
    spequant.calibrate(model, [x], samples=64)
    found = spequant.check_export(model, x[:1], "onnx")
    assert found.ok and not found.floats


class ChannelGate(nn.Module):
    """ECA of timm: a gate by a convolution over the channels. spread: the gate to the shape of the features."""

    def __init__(self, spread):
        super().__init__()
        self.spread = spread
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.conv, self.gate, self.last = nn.Conv1d(1, 1, 5, padding=2), nn.Sigmoid(), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.first(x)
        y = x.mean((2, 3)).view(x.shape[0], 1, -1)
        y = self.gate(self.conv(y)).view(x.shape[0], -1, 1, 1)
        return self.last(x * self.spread(y, x))


@pytest.mark.parametrize(
    "spread",
    [
        lambda y, x: y.expand_as(x),
        lambda y, x: y.broadcast_to(x.shape),
        lambda y, x: torch.broadcast_to(y, x.shape),
        lambda y, x: y.to(x.dtype),
        lambda y, x: y.to(x),
    ],
)
def test_a_gate_of_channels_is_integers_throughout(spread, tmp_path):
    network, x = ChannelGate(spread).eval(), torch.randn(4, 3, 8, 8)
    assert groups_between(network) == [["conv"], ["first.1"], ["gate"]]  # the gate's range is not the features'
    model = spequant.prepare(network, weight=SAWB(4), act=PACT(4), between=8)
    assert spequant.check_export(model, x, "c").line == "integers throughout"
    spequant.calibrate(model, [x], samples=4)
    assert not spequant.export(model.eval(), tmp_path / "a.onnx", [x]).islands  # which compares values


WHOLE = torch.zeros(1, dtype=torch.int32)


@pytest.mark.parametrize(
    "convert",
    [
        lambda y: y.to(torch.int32),
        lambda y: y.to("cpu", torch.int32),
        lambda y: y.to(dtype=torch.int32),
        lambda y: y.to(WHOLE),
        lambda y: y.type_as(WHOLE),
    ],
)
def test_a_conversion_that_changes_numbers_is_refused_by_name(convert):
    model = ChannelGate(lambda y, x: convert(y).float())
    assert "converts to torch.int32" in spequant.check_export(model.eval(), torch.randn(4, 3, 8, 8)).line


STEPS = {
    "clone": lambda y: y.clone(),
    "contiguous": lambda y: y.contiguous(),
    "detach": lambda y: y.detach(),
    "dropout": lambda y: F.dropout(y, 0.1, False),
    "dropout2d": lambda y: F.dropout2d(y, 0.1, False),
    "float": lambda y: y.float(),
    "to": lambda y: y.to(torch.float32),
    "to another": lambda y: y.to(y),
    "type_as": lambda y: y.type_as(y),
}


class Stepped(nn.Module):
    """A layer, a step that leaves numbers alone, and what follows: batch norm, a constant, or a gate of its own."""

    def __init__(self, step, follows):
        super().__init__()
        self.conv, self.norm, self.relu, self.last = (
            nn.Conv2d(3, 4, 1),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 2, 1),
        )
        self.gate, self.step, self.follows = nn.Sigmoid(), step, follows

    def forward(self, x):
        return self.last(self.follows(self, self.conv(x)))


@pytest.mark.parametrize("step", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize(
    "follows",
    [
        lambda m, y: m.relu(m.norm(m.step(y))),
        lambda m, y: m.relu(m.step(y) * 0.5),
        lambda m, y: (lambda z: z * m.step(m.gate(z)))(m.relu(y)),
    ],
    ids=["batch norm", "constant", "gate"],
)
def test_a_step_that_leaves_numbers_alone_changes_no_group(step, follows):
    assert groups_between(Stepped(step, follows)) == groups_between(Stepped(lambda y: y, follows))


@pytest.mark.parametrize("square", [lambda m, y: m.relu(y * y), lambda m, y: m.relu(torch.mul(y, y))])
def test_a_tensor_times_itself_is_no_tensor_times_a_constant(square):
    network, x = Stepped(None, square), torch.randn(8, 3, 4, 4)
    assert groups_between(network) == groups_between(Stepped(None, lambda m, y: m.relu(y.square()))) == [["conv"]]
    model = spequant.prepare(network, weight=SAWB(4), act=PACT(4), between=8)
    assert spequant.check_export(model.eval(), x).line == "integers throughout"


@pytest.mark.parametrize(
    "form",
    [
        lambda m, y: m.relu(y / torch.numel(y)),
        lambda m, y: m.relu(y / y.size(1)),
        lambda m, y: m.relu(y / y.shape[1]),
        lambda m, y: m.relu(y / y.element_size()),
        lambda m, y: m.relu(y / y.itemsize),
        lambda m, y: m.relu(y + torch.zeros_like(y)),
        lambda m, y: m.relu(y * y.new_ones(1)),
        lambda m, y: m.relu(y * torch.full_like(y, 2.0)),
    ],
)
def test_what_follows_from_a_shape_is_no_activation(form):
    assert groups_between(Stepped(None, form)) == [] and not find_additions(Stepped(None, form)).missed


def test_every_step_that_an_export_reads_is_known_here():
    """By name or class; batch norm, and what is quantized already, are looked at on their own."""
    names = {
        *(*between.CURVE_NAMES, *between.CLAMP_NAMES, *between.ARITHMETIC_NAMES, *between.PRODUCT_FUNCTIONS),
        *(*between.MEAN_NAMES, *between.CONCATENATIONS, *between.MOVE_NAMES),
    }
    classes = (*between.CURVE_FUNCTIONS, *between.CLAMPS, *between.MEANS, *between.MOVE_FUNCTIONS)
    read = {getattr(f, "__name__", f).rstrip("_") for op in READ for f in (*op.FUNCTIONS, *op.METHODS)}
    modules = {m for op in READ for m in op.MODULES if m not in (_BatchNorm, Quantizer, QuantizedAdd, QuantizedLayer)}
    assert len(read) > 60 and len(modules) > 40
    assert read - names == set()
    assert not [m for m in modules if not issubclass(m, (*classes, *QUANTIZABLE)) and m.__name__ not in DROPOUT_NAMES]


@pytest.mark.parametrize("step", ["float", "detach", "type_as", "view_as", "alpha"])
def test_a_gate_behind_a_step_that_leaves_numbers_alone_is_found(step):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.r, self.g, self.drop = nn.Linear(6, 6), nn.ReLU(), nn.Sigmoid(), nn.AlphaDropout()
            self.last = nn.Linear(6, 2)

        def forward(self, x):
            x = self.r(self.fc(x))
            y = self.g(x)
            y = self.drop(y) if step == "alpha" else getattr(y, step)(*[x] * step.endswith("_as"))
            return self.last(x * y)

    groups = groups_between(Gated())  # a table of one tensor's codes, but where numbers are put elsewhere
    assert groups == [["fc"]] if step != "view_as" else ["g"] in groups and ["r"] in groups
    x = torch.randn(8, 6)
    model = spequant.prepare(Gated(), weight=SAWB(4), act=PACT(4), between=8)
    assert spequant.check_export(model.eval(), x).line == "integers throughout"


@pytest.mark.parametrize("size", [lambda x: x.size(1), lambda x: x.shape[1] ** 0.5, lambda x: 8])
def test_what_is_divided_by_a_size_is_divided_by_a_constant(size):
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.c, self.d = nn.Linear(6, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.c(x)
            return self.d(torch.relu(x / size(x)))

    assert groups_between(Scaled()) == []
