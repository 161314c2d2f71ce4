"""Integer programs: the twin against the fake-quantized network, and ONNX graphs against the twin, code by code."""

import collections
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from spequant.data import Augment, load_cifar10, train_batches
from spequant.export import Twin, integer_graph, lower, quantize_biases, write_onnx
from spequant.export.integers import integers
from spequant.export.onnx_integer import op_graph, stored
from spequant.export.program import Add, Float, Grid, Input, Op, Weighted
from spequant.layers import QuantizedLayer
from spequant.models import load_weights, mobilenet_v2, resnet8, resnet20, vgg16_bn
from spequant.quantizers import LSQ, PACT, SAWB, DoReFa, LeastSquares, MinMax
from support.processor import clipped, skip_if_clipped

ort = pytest.importorskip("onnxruntime")
onnx = pytest.importorskip("onnx")
FLOAT_LEFT = {"Mul": 2, "QuantizeLinear": 2, "DequantizeLinear": 3, "Add": 1, "Relu": 1, "GlobalAveragePool": 1}
INTEGER = {"Clip", "QLinearConv", "QLinearAdd", "QGemm", "Transpose", "Flatten", "MaxPool", "Concat", "ReduceMax"}


def prepared(network, weight, act, x, **options):
    model = spequant.prepare(network, weight=weight, act=act, **options)
    spequant.calibrate(model, [x], samples=len(x))
    quantize_biases(model, x[:1])
    return model.eval()


def session(model, path=None):
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    if path is not None:
        options.optimized_model_filepath = str(path)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def kinds_left(model, tmp_path):
    session(model, tmp_path / "optimised.onnx")
    return collections.Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)


def behind_an_island(op) -> bool:
    return isinstance(op, Float) or any(behind_an_island(i) for i in op.inputs)


def unequal(program, x) -> dict[str, int]:
    """Codes of each op that onnxruntime, given the twin's inputs of it, computes otherwise; not of those whose sums
    this processor clips."""
    twin, left_out = Twin(program), clipped(program)
    values = twin.everything(x)
    found = {}
    for op in program.ops:
        if not isinstance(op, Input) and op.grid is not None and op.name not in left_out:
            names = {f"in{i}": source for i, source in enumerate(dict.fromkeys(op.inputs))}
            feed = {n: stored(values[s], s.grid) if s.grid else values[s].numpy() for n, s in names.items()}
            (got,) = session(op_graph(op)).run(None, feed)
            found[op.name] = int((got != stored(values[op], op.grid)).sum())
    return found


@pytest.mark.parametrize(
    ("weight", "act", "options"),
    [
        (SAWB(2), PACT(2), {}),
        (SAWB(4), PACT(4), {}),
        (SAWB(8), PACT(8), {}),
        (SAWB(1), PACT(1), {}),
        (LSQ(2), LSQ(2), {"per_channel": True}),
        (DoReFa(3), DoReFa(3), {"ends": 7}),
        (LeastSquares(2), MinMax(4), {"ends": None}),
    ],
)
def test_the_twin_answers_as_the_network_and_onnxruntime_as_the_twin(weight, act, options, tmp_path):
    x = torch.randn(32, 1, 8, 8)
    model = prepared(resnet8(in_channels=1), weight, act, x, **options)
    program = lower(model, x[:1])
    twin, logits = Twin(program), model(x)
    same = (twin(x).argmax(1) == logits.argmax(1)).float().mean()
    assert same >= 31 / 32
    torch.testing.assert_close(twin(x), logits, rtol=1e-3, atol=2e-2 * float(logits.detach().std()))
    assert not any(unequal(program, x).values())
    skip_if_clipped(program)
    # End to end all codes are equal, but for ties behind a float mean (DoReFa's steps make many of them).
    integer = [op for op in program.ops if op.grid is not None and not behind_an_island(op)]
    graph = integer_graph(program, taps=integer)
    got, *codes = session(graph).run(None, {"input": x.numpy()})
    values = twin.everything(x)
    assert all((c == stored(values[op], op.grid)).all() for c, op in zip(codes, integer, strict=True))
    np.testing.assert_allclose(got, twin(x).numpy(), rtol=1e-3, atol=2e-2 * float(logits.detach().std()))
    graph = integer_graph(program)
    if options.get("ends", 8) is not None:
        left = kinds_left(graph, tmp_path)
        assert all(left[k] <= FLOAT_LEFT.get(k, 0) for k in set(left) - INTEGER), left


@pytest.mark.parametrize("network", [vgg16_bn, mobilenet_v2])
def test_other_networks(network, tmp_path):
    x = torch.randn(8, 3, 32, 32)
    model = prepared(network(), SAWB(4), PACT(4), x)
    program = lower(model, x[:1])
    twin = Twin(program)
    assert (twin(x).argmax(1) == model(x).argmax(1)).float().mean() >= 7 / 8
    assert not any(unequal(program, x).values())
    skip_if_clipped(program)
    (got,) = session(integer_graph(program)).run(None, {"input": x.numpy()})
    np.testing.assert_allclose(got, twin(x).numpy(), rtol=1e-4, atol=1e-5)


def test_rounding_biases_is_what_makes_the_network_and_its_integers_agree(shared_data):
    """Without it one code in ten thousand of the first layer is another one, and by the last layer one in ten."""
    train, test = load_cifar10(shared_data)
    network = resnet20()
    load_weights(network, shared_data / "weights" / "resnet20-12fca82f.th")
    model = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, train_batches(train, 128, seed=0, epoch=0, augment=Augment()))
    model.eval()
    x = test.normalise(test.images[:200])

    def agreement():
        with torch.no_grad():
            return float((Twin(lower(model, x[:1]))(x).argmax(1) == model(x).argmax(1)).float().mean())

    assert agreement() < 0.95
    quantize_biases(model, x[:1])
    once = [p.clone() for p in model.parameters()]
    assert agreement() >= 0.99
    quantize_biases(model, x[:1])
    assert all(torch.equal(a, b) for a, b in zip(once, model.parameters(), strict=True))


def test_another_activation_width_is_exported_from_within_its_context():
    x = torch.randn(32, 1, 8, 8)
    model = prepared(resnet8(in_channels=1), SAWB(2), PACT(2), x)
    with spequant.precision(model, spequant.Fixed({"layer*conv*": 4})):
        program, logits = lower(model, x[:1]), model(x)
    twin = Twin(program)
    assert {op.grid.high for op in program.ops if op.grid and ".conv" in op.name and not op.grid.signed} == {15}
    assert (twin(x).argmax(1) == logits.argmax(1)).float().mean() >= 31 / 32


def weighted(scale, offset, codes=((-3, 1), (3, -1)), step=0.5):
    source = Op("x", (), Grid(0.1, 0, 3), (1, 2))
    made = [torch.tensor(v, dtype=torch.float64) for v in (scale, offset)]
    return Weighted("w", (source,), Grid(step, 0, 3), (1, 2), torch.tensor(codes, dtype=torch.int16), *made)


def test_negative_and_vanishing_gammas_and_large_biases():
    plain = integers(weighted([0.2, 0.2], [1.0, -1.0]))
    assert plain.weight.tolist() == [[-126, 42], [126, -42]] and plain.bias.tolist() == [2100, -2100]
    flipped = integers(weighted([-0.2, 0.2], [1.0, -1.0]))
    assert flipped.weight.tolist() == [[126, -42], [126, -42]] and (flipped.scale > 0).all()
    assert flipped.bias.tolist() == [2100, -2100]
    for tiny in (0.0, 1e-12, -1e-12):
        made = integers(weighted([tiny, 0.2], [1.0, 0.0]))
        assert made.weight[0].tolist() == [0, 0] and made.scale[0] > 0
        assert float(made.bias[0] * made.scale[0].double() * 0.1) == pytest.approx(1.0, rel=1e-6)
    nothing = integers(weighted([0.0, 0.2], [0.0, 0.0]))
    assert nothing.weight[0].tolist() == [0, 0] and nothing.bias[0] == 0 and nothing.scale[0] > 0
    lowest = integers(weighted([-0.2, 0.2], [1.0, 1.0], codes=((-128, 1), (5, 5))))
    assert lowest.weight[0].tolist() == [-128, 1] and lowest.scale[0] < 0 and int(lowest.bias[0]) < 0


@pytest.mark.parametrize("scale", [[-0.2, 0.2], [0.0, 0.2], [1e-12, -0.3]])
@pytest.mark.parametrize("codes", [((-3, 1), (3, -1)), ((-128, 1), (5, 5))])
def test_engines_agree_on_them(scale, codes):
    op = weighted(scale, [0.3, -0.2], codes, 0.02)
    op = replace(op, grid=Grid(0.02, -127, 127))
    x = torch.cartesian_prod(torch.arange(4), torch.arange(4)).int()
    twin = Twin.__new__(Twin)
    twin.integers = {op: integers(op)}
    expected = twin.step(op, [x])
    (got,) = session(op_graph(op)).run(None, {"in0": stored(x, op.inputs[0].grid)})
    assert (got == stored(expected, op.grid)).all()
    value = op.scale * 0.1 * (x.double() @ op.weight.double().T) + op.offset
    assert (torch.round(value / 0.02).clamp(-127, 127) - expected).abs().max() <= 1


class Joined(nn.Module):
    """Concatenation, two additions of the same tensors read at two precisions, slicing and padding, flattening."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.pool = nn.MaxPool2d(3, 2, 1)
        self.c, self.d = nn.Conv2d(8, 8, 3, groups=2), nn.Linear(32, 5)

    def forward(self, x):
        y = torch.cat([torch.relu(self.a(x)), self.b(x).clamp(0, 1)], 1)
        y = self.c(self.pool(y))
        return self.d(torch.flatten(y, 1))


class Twice(nn.Module):
    residual_addition = True

    def forward(self, branch, shortcut):
        return branch + shortcut


class Doubled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.add, self.b = nn.Linear(6, 6), Twice(), nn.Linear(6, 3)

    def forward(self, x):
        y = self.a(x)
        return self.b(torch.relu(self.add(y, y)))


def test_a_tensor_may_be_added_to_itself():
    x = torch.randn(64, 6)
    model = prepared(Doubled(), SAWB(3), PACT(3), x)
    program = lower(model, x[:1])
    assert not any(unequal(program, x).values())
    torch.testing.assert_close(Twin(program)(x), model(x), rtol=1e-3, atol=1e-3)


def test_concatenation_clamps_pooling_and_groups():
    x = torch.randn(64, 3, 8, 8)
    model = prepared(Joined(), SAWB(3), PACT(3), x)
    program = lower(model, x[:1])
    assert program.islands() == [] and not any(unequal(program, x).values())
    torch.testing.assert_close(Twin(program)(x), model(x), rtol=1e-3, atol=1e-3)


def test_a_uint8_image_may_be_the_input():
    images = torch.randint(0, 256, (32, 1, 8, 8), dtype=torch.uint8)
    x = (images.float() / 255 - 0.4) / 0.3
    model = prepared(resnet8(in_channels=1), SAWB(2), PACT(2), x)
    program = lower(model, x[:1])
    graph = integer_graph(program, preprocessing=((0.4,), (0.3,)))
    (got,) = session(graph).run(None, {"input": images.numpy()})
    assert (got.argmax(1) == model(x).argmax(1).numpy()).mean() >= 31 / 32


def test_taps_give_every_layers_codes(tmp_path):
    x = torch.randn(4, 1, 8, 8)
    program = lower(prepared(resnet8(in_channels=1), SAWB(2), PACT(2), x), x[:1])
    taps = [op for op in program.ops if op.grid is not None]
    write_onnx(integer_graph(program, taps=taps), tmp_path / "tapped.onnx")
    _, *codes = session(onnx.load(tmp_path / "tapped.onnx")).run(None, {"input": x.numpy()})
    values = Twin(program).everything(x)
    assert all((c == stored(values[op], op.grid)).all() for c, op in zip(codes, taps, strict=True))
    assert sum(isinstance(op, Add) for op in taps) == 4  # two of three sums are read at 2 and at 8 bits, one in float


class Deciding(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.first, self.last, self.kind = nn.Linear(4, 4), nn.Linear(4, 4), kind

    def forward(self, x):
        y = self.first(x)
        if self.kind == "branch" and y.sum() > 0:
            return self.last(y)
        if self.kind == "sort":
            y = torch.sort(y)[0]
        if self.kind == "number":
            y = y + 1
        if self.kind == "number first":
            y = 2 * y
        if self.kind == "scaled sum":
            y = torch.add(y, x, alpha=2)
        if self.kind == "flatten":
            y = torch.flatten(y, 0).reshape(-1, 4)
        if self.kind == "tensor bound":
            y = torch.clamp(y, x, x + x)
        return self.last(y)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("branch", "cannot be traced for export"),
        ("sort", "the operation sort has no integer form"),
        ("number", "add: an addition or product with a number"),
        ("number first", "mul: an addition or product with a number"),
        ("scaled sum", "add: called so it has no integer form"),
        ("flatten", "flatten: flattening from 0 to -1 has no form here"),
        ("tensor bound", "clamp.*: called so it has no integer form"),
    ],
)
def test_what_has_no_integer_form_is_named(kind, message):
    x = torch.rand(64, 4)
    model = spequant.prepare(Deciding(kind), weight=SAWB(2), act=PACT(2), residual=None)
    spequant.calibrate(model, [x], samples=64, reestimate=False)
    with pytest.raises(ValueError, match=message):
        lower(model, x[:1])


def test_more_that_has_no_integer_form():
    x = torch.rand(64, 3, 4, 4)

    def lowered(network, **options):
        model = spequant.prepare(network, **({"weight": SAWB(2), "act": PACT(2)} | options))
        spequant.calibrate(model, [x], samples=64)
        return lower(model, x[:1])

    with pytest.raises(ValueError, match=r"0: ConvTranspose2d has no integer form"):
        lowered(nn.Sequential(nn.ConvTranspose2d(3, 3, 1), nn.Conv2d(3, 2, 1)))
    flat = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Flatten(2), nn.Conv1d(3, 2, 1))
    with pytest.raises(ValueError, match="1: flattening from 2 to -1 has no form here"):
        lowered(flat)
    pooled = nn.Sequential(nn.Conv2d(3, 3, 1), nn.MaxPool2d(2, dilation=2), nn.Conv2d(3, 2, 1))
    with pytest.raises(ValueError, match="1: max pooling with dilation"):
        lowered(pooled)
    with pytest.raises(ValueError, match="padding_mode 'reflect' has no integer form"):
        lowered(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1, padding_mode="reflect"), nn.Conv2d(3, 2, 1)))
    with pytest.raises(ValueError, match=r"its 256 levels without zero need codes up to \d+, which int8 cannot hold"):
        lowered(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)), weight=DoReFa(2))
    with pytest.raises(ValueError, match="activations are quantized and weights are float"):
        lowered(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)), weight=None)
    model = spequant.prepare(nn.Sequential(nn.Conv2d(3, 3, 1), nn.Conv2d(3, 2, 1)), weight=SAWB(2), act=PACT(2))
    assert isinstance(model[0], QuantizedLayer)
    with pytest.raises(RuntimeError, match="has no range yet"):
        lower(model, x[:1])
