"""Every way of writing an operation: the integer program has the very values of the network, and so has the file."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import spequant
from reference.integer_operations import literal
from spequant.deploy import FORMATS, Twin, integer_graph, lower, quant_graph
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats import ProgramFormat
from spequant.deploy.formats.openvino import openvino_graph
from spequant.deploy.outputs import outputs_by_name
from spequant.deploy.running import in_engine
from support.clipping import skip_if_clipped
from support.exact import exact
from support.integer_networks import NEEDS_ONNXRUNTIME, session, unequal


class Between(nn.Module):
    """A form between two layers: convolutions of 4 channels on 6 x 8 positions, and as many outputs as are left."""

    def __init__(self, form, *modules, first=None, scale=None):
        super().__init__()
        self.form, self.parts = form, nn.ModuleList(modules)
        self.register_buffer("scale", scale)
        self.first = first or nn.Conv2d(2, 4, 1)
        with torch.no_grad():
            y = form(self.eval(), self.first(torch.zeros(2, *self.shape())))
        self.last = nn.Linear(y.flatten(1).shape[1], 3)

    def shape(self):
        return (2, 8) if isinstance(self.first, nn.Conv1d) else (2, 6, 8)

    def forward(self, x):
        return self.last(torch.flatten(self.form(self, self.first(x)), 1))


def part(*modules):
    def run(net, y):
        for module in net.parts:
            y = module(y)
        return y

    return lambda: Between(run, *modules)


def form(function):
    return lambda: Between(lambda net, y: function(y))


def conv(*args, **options):
    """A second convolution, with a bias."""
    return part(nn.Conv2d(*args, **options))


def shuffled(y):
    b, c, h, w = y.shape
    return y.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, -1, h, w)


def shuffled_across(y):
    """As ShuffleNetV2 has it elsewhere: the halves of channels change places with the batch."""
    b, c, h, w = y.shape
    y = y.reshape(b * c // 2, 2, h * w).permute(1, 0, 2).reshape(2, -1, c // 2, h, w)
    return torch.cat([y[0], y[1]], 1)


def halves(y):
    a, b = y.chunk(2, dim=1)
    return torch.cat([b, a], 1)


SHAPES = {
    "view of size": form(lambda y: y.view(y.size(0), -1)),
    "reshape of shape": form(lambda y: y.reshape(y.shape[0], -1)),
    "view of minus one": form(lambda y: y.view(-1, 4 * 6 * 8)),
    "flatten of positions": form(lambda y: y.flatten(2)),
    "unflatten": part(nn.Flatten(), nn.Unflatten(1, (6, 8, 4))),
    "squeeze": form(lambda y: y[:, :, :1, :1].squeeze(-1).squeeze(-1)),
    "squeeze all": form(lambda y: y[:, :, :1, :1].squeeze()),
    "index": form(lambda y: y[:, :, 0, 0]),
    "ellipsis": form(lambda y: y[..., 2:7:2]),
    "new dimension": form(lambda y: y[:, None, :, 1]),
    "unsqueeze": form(lambda y: y.unsqueeze(2)),
    "permute": form(lambda y: y.permute(0, 2, 3, 1)),
    "transpose": form(lambda y: torch.transpose(y, 1, -1)),
    "channel shuffle": form(shuffled),
    "channel shuffle module": part(nn.ChannelShuffle(2)),
    "halves": form(halves),
    "split": form(lambda y: torch.cat([*reversed(torch.split(y, [1, 3], 1))], 1)),
    "split of positions": form(lambda y: y.split(4, -1)[1]),
    "unbind": form(lambda y: y.unbind(2)[-1]),
    "slice of channels": form(lambda y: torch.cat([y[:, 2:], y[:, :2]], 1)),
    "narrow": form(lambda y: y.narrow(1, 1, 2)),
    "select": form(lambda y: y.select(3, -1)),
    "stack": form(lambda y: torch.stack([y[:, :2], y[:, 2:]], 2)),
    "concat of positions": form(lambda y: torch.cat([y, y[:, :, :2]], 2)),
    "pixel shuffle": part(nn.PixelShuffle(2)),
    "pixel unshuffle": form(lambda y: F.pixel_unshuffle(y, 2)),
    "nearest": part(nn.Upsample(scale_factor=2)),
    "nearest of size": form(lambda y: F.interpolate(y, size=(12, 24), mode="nearest")),
    "expand": form(lambda y: y[:, :, :1].expand(-1, -1, 6, -1)),
    "adaptive of equal size": part(nn.AdaptiveAvgPool2d((6, 8))),
    "adaptive to more": form(lambda y: F.adaptive_avg_pool2d(y[:, :, :1, :1], 3)),
    "zero pad": part(nn.ZeroPad2d((1, 2, 0, 1)), nn.Conv2d(4, 4, 3)),
    "pad before a layer": lambda: Between(lambda net, y: net.parts[0](F.pad(y, (1, 0))), nn.Conv2d(4, 4, 3, padding=1)),
    "pad alone": form(lambda y: F.pad(y, (1, 2, 3, 0))),
    "pad with a number": form(lambda y: F.max_pool2d(F.pad(y, (0, 1, 0, 1), value=0.75), 2)),
    "pad below zero": form(lambda y: F.pad(y, (-1, 2, 0, -2))),
    "reflect": conv(4, 4, 3, padding=1, padding_mode="reflect"),
    "replicate": conv(4, 4, (3, 2), padding=(1, 2), padding_mode="replicate"),
    "same": conv(4, 4, 2, padding="same"),
    "ceil mode": part(nn.MaxPool2d(2, ceil_mode=True)),
    "ceil mode with a part of a window": part(nn.MaxPool2d(3, 2, ceil_mode=True)),
    "max pool of one dimension": lambda: Between(lambda net, y: F.max_pool1d(y, 3, 2, 1), first=nn.Conv1d(2, 4, 1)),
    "adaptive max": part(nn.AdaptiveMaxPool2d((3, 4))),
    "amax of channels": form(lambda y: y.amax(1)),
    "negative": form(lambda y: -y),
    "times a number": form(lambda y: 0.5 * y / 2 + 0.25),
    "number minus": form(lambda y: 1 - y),
    "shuffle across the batch": form(shuffled_across),
    "groups in the batch": form(lambda y: y.view(-1, 2, 6, 8).amax(1).view(y.size(0), -1)),
    "rows of a sample": lambda: Between(
        lambda net, y: net.parts[0](y.reshape(-1, 8)).view(y.shape[0], -1), nn.Linear(8, 5)
    ),
    "positions first": lambda: Between(
        lambda net, y: net.parts[0](y.permute(2, 3, 0, 1)[0].transpose(0, 1)), nn.Linear(4, 2)
    ),
    "batch second and back": form(lambda y: y.transpose(0, 1)[1:3].unbind(0)[1]),
    "movedim": form(lambda y: y.movedim(1, -1)),
    "flip": form(lambda y: y.flip(3, 2)),
    "roll": form(lambda y: torch.roll(y, (1, -3), (1, 3))),
    "copies": form(lambda y: y.repeat(1, 2, 1, 3)),
    "copies in a row": form(lambda y: y.repeat_interleave(2, dim=1)),
    "channels by a list": form(lambda y: y[:, [2, 0, 0, 3]]),
    "channels by a tensor": form(lambda y: torch.index_select(y, 1, torch.tensor([3, 1]))),
    "circular": conv(4, 3, 3, padding=1, padding_mode="circular"),
    "circular pad": part(nn.CircularPad2d((1, 0, 2, 1))),
    "nearest to less": form(lambda y: F.interpolate(y, scale_factor=0.5)),
    "nearest-exact to less": form(lambda y: F.interpolate(y, size=(3, 2), mode="nearest-exact")),
    "one pixel in lines": form(lambda y: F.interpolate(y[:, :, :1, :1], size=(3, 5), mode="bilinear")),
    "larger of two": form(lambda y: torch.maximum(y[:, :2], y[:, 2:])),
    "largest along a dimension": form(lambda y: y.max(dim=3, keepdim=True)[0]),
    "linear on more dimensions": lambda: Between(lambda net, y: net.parts[0](y.flatten(2)), nn.Linear(48, 5)),
    "linear on the last of four": part(nn.Linear(8, 3), nn.ReLU(), nn.Linear(3, 2)),
}
TRANSPOSED = {
    "two by two": (4, 3, 2, {"stride": 2}),
    "four by four": (4, 3, 4, {"stride": 2, "padding": 1}),
    "output padding": (4, 3, 3, {"stride": 2, "padding": 1, "output_padding": 1}),
    "stride 1": (4, 3, 3, {"padding": 1}),
    "groups": (4, 6, 3, {"stride": (2, 1), "groups": 2}),
    "dilation": (4, 2, 3, {"stride": 2, "dilation": (2, 3), "padding": (1, 2)}),
    "depthwise": (4, 4, 4, {"stride": 3, "groups": 4, "padding": 2}),
}
POOLS = {
    "average": part(nn.AvgPool2d(2)),
    "average, overlapping": part(nn.AvgPool2d(3, 2)),
    "average, padded": part(nn.AvgPool2d(3, 1, 1)),
    "average, padding not counted": part(nn.AvgPool2d(4, 2, (1, 2), count_include_pad=False)),
    "average, ceil mode": part(nn.AvgPool2d((4, 3), (4, 2), ceil_mode=True)),
    "average, ceil mode that changes nothing": part(nn.AvgPool2d(2, ceil_mode=True)),
    "average of one dimension": lambda: Between(lambda net, y: F.avg_pool1d(y, 2, 2, 1), first=nn.Conv1d(2, 4, 1)),
    "adaptive": part(nn.AdaptiveAvgPool2d((3, 2))),
    "adaptive to one row": part(nn.AdaptiveAvgPool2d((1, 8))),
    "global": part(nn.AdaptiveAvgPool2d(1)),
    "whole window": part(nn.AvgPool2d((6, 8))),
    "zeros before an average": part(nn.ZeroPad2d(1), nn.AvgPool2d(4)),
    "bilinear": part(nn.Upsample(scale_factor=2, mode="bilinear")),
    "bilinear, sizes that differ": form(lambda y: F.interpolate(y, size=(24, 8), mode="bilinear")),
    "linear, four times": lambda: Between(
        lambda net, y: F.interpolate(y, scale_factor=4, mode="linear"), first=nn.Conv1d(2, 4, 1)
    ),
    "half in lines": form(lambda y: F.interpolate(y, scale_factor=0.5, mode="bilinear")),
    "area": form(lambda y: F.interpolate(y, size=(3, 2), mode="area")),
    "mean of mean": form(lambda y: y.mean(3).mean(2)),
    "mean over positions": form(lambda y: y.mean((2, 3))),
    "mean over channels": form(lambda y: y.mean(1, keepdim=True)),
    "average of flattened positions": form(lambda y: y.flatten(2).mean(-1)),
}


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.down, self.up, self.act, self.gate = nn.Conv2d(4, 2, 1), nn.Conv2d(2, 4, 1), nn.SiLU(), nn.Hardsigmoid()

    def forward(self, y):
        return y * self.gate(self.up(self.act(self.down(y.mean((2, 3), keepdim=True)))))


FUNCTIONS = {
    "leaky relu": part(nn.LeakyReLU(0.1)),
    "prelu": part(nn.PReLU()),
    "prelu by channel": part(nn.PReLU(4, 0.125), nn.Conv2d(4, 3, 1)),
    "relu6": part(nn.ReLU6()),
    "hardswish": part(nn.Hardswish()),
    "hardsigmoid": part(nn.Hardsigmoid()),
    "silu": part(nn.SiLU()),
    "gelu": part(nn.GELU()),
    "gelu by tanh": part(nn.GELU(approximate="tanh")),
    "sigmoid": part(nn.Sigmoid()),
    "tanh": part(nn.Tanh()),
    "mish": part(nn.Mish()),
    "elu": form(lambda y: F.elu(y, 0.5)),
    "celu": part(nn.CELU(2.0)),
    "selu": part(nn.SELU()),
    "softplus": form(lambda y: F.softplus(y, 2)),
    "softsign": part(nn.Softsign()),
    "logsigmoid": part(nn.LogSigmoid()),
    "squared relu": form(lambda y: F.relu(y) ** 2),
    "root": form(lambda y: torch.sqrt(y.abs())),
    "swish by hand": form(lambda y: y * torch.sigmoid(1.5 * y)),
    "hardswish by hand": form(lambda y: y * F.relu6(y + 3) / 6),
    "quotient": form(lambda y: y / (1 + y.abs())),
    "difference": form(lambda y: torch.exp(-y.abs()) - torch.tanh(y)),
    "function of a function": part(nn.SiLU(), nn.Tanh(), nn.Conv2d(4, 3, 1)),
    "squeeze and excitation": part(Gate()),
    "product of two layers": lambda: Between(
        lambda net, y: net.parts[2](net.parts[0](y)) * net.parts[1](y),
        *(nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1), nn.Sigmoid()),
    ),
    "difference of two layers": lambda: Between(
        lambda net, y: net.parts[0](y) - net.parts[1](y), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)
    ),
    "hard sigmoid by hand": form(lambda y: F.relu6(y + 3) / 6),
    "batch norm behind a concatenation": lambda: Between(
        lambda net, y: net.parts[1](torch.relu(net.parts[0](torch.cat([net.parts[2](y), net.parts[3](y)], 1)))),
        *(nn.BatchNorm2d(6), nn.Conv2d(6, 3, 1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)),
    ),
    "batch norm behind a flattened mean": part(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4)),
    "scaled by channel": lambda: Between(
        lambda net, y: torch.relu(y) * net.scale + 0.25, scale=torch.tensor([0.5, -1.0, 2.0, 0.25]).view(4, 1, 1)
    ),
}
ALL = {"shape": SHAPES, "transposed": {n: part(nn.ConvTranspose2d(*a[:3], **a[3])) for n, a in TRANSPOSED.items()}}
ALL |= {"pool": POOLS, "function": FUNCTIONS}
FORMS = {f"{kind}: {name}": make for kind, forms in ALL.items() for name, make in forms.items()}
QUICK = {
    *("shape: channel shuffle", "shape: halves", "shape: index", "shape: linear on more dimensions", "shape: nearest"),
    *("shape: pad alone", "shape: pixel shuffle", "shape: replicate", "shape: same", "shape: zero pad"),
    *("shape: shuffle across the batch", "shape: rows of a sample", "shape: channels by a list", "pool: bilinear"),
    *("shape: larger of two", "function: difference of two layers"),
    *("shape: ceil mode with a part of a window", "shape: view of size", "transposed: output padding"),
    *("pool: average, padded", "pool: average, padding not counted", "pool: mean of mean"),
    *("function: batch norm behind a concatenation", "function: prelu by channel", "function: hardswish by hand"),
    *("function: silu", "function: squeeze and excitation", "function: scaled by channel"),
}
"""Each operation at least once."""


def lowered(make, between=False):
    torch.manual_seed(0)
    network = make()
    x = torch.randn(3, *network.shape())
    return exact(network, x, between=between), x


def tiered(names):
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def far_from_ties(exact, op):
    """Where a result is not in the middle of two codes, but for what fp32 may be off by."""
    middle = (exact - exact.floor() - 0.5).abs()
    beyond = (exact < op.grid.low - 1) | (exact > op.grid.high + 1)
    return (middle > 1e-6 * (4 + exact.abs())) | beyond


@NEEDS_ONNXRUNTIME
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", tiered(FORMS))
def test_a_form_is_computed_as_the_network_does(name):
    """By the twin, by literal arithmetic on whole numbers, and by onnxruntime."""
    model, x = lowered(FORMS[name], between=not name.startswith("shape"))
    program = lower(model, x)
    assert not program.islands()
    values = Twin(program).everything(x)
    ties = 0
    for op in program.integer_ops:
        expected = literal(op, [values[i].long() if i.grid else values[i] for i in op.inputs])
        far = far_from_ties(expected, op)
        codes = expected.round().clamp(op.grid.low, op.grid.high).int()
        assert torch.equal(values[op][far], codes[far]), op
        ties += int((~far).sum())
    with torch.no_grad():
        expected = model(x)
    assert torch.allclose(Twin(program)(x), expected, rtol=0, atol=1e-5) or (ties and not name.startswith("shape"))
    skip_if_clipped(program)
    assert not any(unequal(program, x).values())
    got = session(integer_graph(program)).run(None, {"input": x.numpy()})[0]
    np.testing.assert_allclose(np.asarray(got), Twin(program)(x), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize(("engine", "graph_of"), [("openvino", openvino_graph), ("qonnx", quant_graph)])
def test_other_engines_compute_it_too(engine, graph_of, name):
    pytest.importorskip(engine)
    model, x = lowered(FORMS[name], between=not name.startswith("shape"))
    program = lower(model, x)
    (got,) = ENGINES[engine](graph_of(program).SerializeToString())({"input": x.numpy()})
    np.testing.assert_allclose(got, Twin(program)(x), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("between", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_a_check_says_of_every_format_what_an_export_does(name, between):
    pytest.importorskip("onnx")
    pytest.importorskip("ai_edge_litert")
    model, x = lowered(FORMS[name], between)
    for format in (form for form in FORMATS.values() if isinstance(form, ProgramFormat)):
        found = spequant.check_export(model, x[:1], format.name)
        try:
            format.draft(model, x[:1], None, None)
        except IndexError as error:  # the network's own, for one sample
            assert name == "shape: squeeze all" and str(error) in str(found)
        except ValueError as error:
            assert str(error).partition(":")[0] in {one.name for one in found.refused}, (str(error), str(found))
        else:
            assert found.ok, found


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize("name", ["shape: rows of a sample", "shape: groups in the batch"])
def test_samples_that_are_taken_apart_are_exported_where_tensors_may_have_several_rows(name, tmp_path):
    model, x = lowered(FORMS[name], between=False)
    assert spequant.export(model, tmp_path / "net.onnx", [x]).parity.agreement == 1
    for format, file in (("tflite", "net.tflite"), ("c", "net")):
        with pytest.raises(ValueError, match=rf"parts of a sample.*{format}"):
            spequant.export(model, tmp_path / file, [x], format=format)
        assert not spequant.check_export(model, x[:1], format).ok


class Plain(nn.Linear):
    def forward(self, x):
        return super().forward(x)


class KerasConv(nn.Conv2d):
    """Padding as Keras has it, by its own forward."""

    def forward(self, x):
        k, s, (h, w) = self.kernel_size[0], self.stride[0], x.shape[2:]
        rest = [max(0, (-(-n // s) - 1) * s + k - n) for n in (w, h)]
        x = F.pad(x, [n for r in rest for n in (r // 2, r - r // 2)])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


def test_a_subclass_that_computes_as_torchs_layer_is_read_as_it():
    model, x = lowered(part(KerasConv(4, 3, 3, stride=2), nn.Flatten(), Plain(3 * 3 * 4, 5)))
    program = lower(model, x)
    assert [op.padding for op in program.weighted][1] == (0, 0, 1, 1)
    with torch.no_grad():
        assert torch.equal(Twin(program)(x), model(x))


def test_one_that_computes_otherwise_is_named():
    model, x = lowered(part(Doubled(4, 3, 3)))
    with pytest.raises(ValueError, match=r"^parts\.0: Doubled .*export_mixed"):
        lower(model, x)


OUTPUTS = {
    "tuple": (lambda y: (y, y[:, 0]), ["output0", "output1"]),
    "mapping": (lambda y: {"input": y.amax((2, 3)), "map": y}, ["input_output", "map"]),
    "nested": (lambda y: {"boxes": [y, y[:, 1:]], "scores": y}, ["boxes.0", "boxes.1", "scores"]),
}


class Several(nn.Module):
    def __init__(self, form):
        super().__init__()
        self.first, self.last, self.form = nn.Conv2d(2, 4, 1), nn.Conv2d(4, 4, 3), form

    def forward(self, x):
        return self.form(self.last(torch.relu(self.first(x))))


@NEEDS_ONNXRUNTIME
@pytest.mark.parametrize("name", OUTPUTS)
def test_several_outputs_have_names(name, tmp_path):
    form, names = OUTPUTS[name]
    torch.manual_seed(0)
    x = torch.randn(8, 2, 5, 5)
    model = exact(Several(form), x)
    skip_if_clipped(lower(model, x))
    report = spequant.export(model, tmp_path / "net.onnx", [x])
    assert [v.output for v in report.parity.values] == names and not any(v.apart > 1e-6 for v in report.parity.values)
    loaded = spequant.load(tmp_path / "net.onnx")
    with torch.no_grad():
        expected = list(outputs_by_name(model(x)).values())
    for engine in ("onnxruntime", "torch"):
        answers = in_engine(loaded, engine)(x)
        assert list(answers) == names
        for got, tensor in zip(answers.values(), expected, strict=True):
            torch.testing.assert_close(got, tensor, rtol=0, atol=1e-5)
