"""Capability: an export whose numbers are wrong is refused, and a right one is not, whatever kind of output it has
(maps, images, regressions, boxes, autoencoders, class scores) and in every format that is verified."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from spequant.deploy import compare_answers, export_onnx, integer_graph, lower, mixed_graph, quant_graph
from spequant.deploy.engines import ENGINES, onnxruntime
from spequant.deploy.formats.mixed import answers
from spequant.deploy.inputs import as_batches
from spequant.deploy.operations import Weighted
from spequant.deploy.program import Program
from spequant.quantizers import LSQ, PACT, SAWB
from support.integer_networks import NEEDS_ONNXRUNTIME, prepared
from support.mixed_networks import NEEDS_ONNXSCRIPT

pytestmark = NEEDS_ONNXRUNTIME


def convolutional(inputs, outputs):
    layers = nn.Conv2d(inputs, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()
    return nn.Sequential(*layers, nn.Conv2d(8, outputs, 3, padding=1))


def linear(outputs):
    hidden = nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU()
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(16, outputs))


KINDS = {
    "one-channel map": lambda: convolutional(1, 1),
    "image": lambda: convolutional(1, 3),
    "regression": lambda: linear(1),
    "boxes": lambda: linear(4),
    "autoencoder": lambda: nn.Sequential(linear(36), nn.Sigmoid()),
    "scores": lambda: linear(10),
}
WIDTHS = {"W2A2": (SAWB(2), PACT(2)), "W4A4": (LSQ(4), LSQ(4)), "W8A8": (LSQ(8), LSQ(8))}


def network(kind):
    """With biases of about the size of what the layers make of their weights, some of each sign."""
    made = KINDS[kind]()
    with torch.no_grad():
        for layer in made.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                layer.bias.copy_(0.4 * (-1.0) ** torch.arange(len(layer.bias)))
    return made


def images():
    return torch.randn(64, 1, 6, 6)


def turned(op: Weighted) -> Weighted:
    """Its outputs in another order; of one output, its inputs."""
    return replace(op, weight=op.weight.roll(1, 0) if len(op.weight) > 1 else op.weight.flip(1))


BREAKS = {
    "scale off": lambda op: replace(op, scale=1.25 * op.scale),
    "sign flipped": lambda op: replace(op, scale=-op.scale),
    "channels swapped": turned,
    "bias dropped": lambda op: replace(op, offset=torch.zeros_like(op.offset)),
    "constant": lambda op: replace(op, weight=torch.zeros_like(op.weight)),
}


def broken(program: Program, how: str, which: int = -1) -> Program:
    """`program` with one layer computed otherwise, the last unless told."""
    target = [op for op in program.ops if isinstance(op, Weighted)][which]
    made = {}
    for op in program.ops:
        made[op] = replace(op, inputs=tuple(made[i] for i in op.inputs))
        if op is target:
            made[op] = BREAKS[how](made[op])
    return Program(list(made.values()), made[program.output])


@pytest.mark.parametrize("kind", KINDS)
def test_a_right_export_of_every_kind_passes_and_a_wrong_one_leaves_no_file(kind, tmp_path, monkeypatch):
    """By its values end to end: the layer that is wrong has a float output, whose codes nobody can force."""
    x = images()
    model = prepared(network(kind), x, *WIDTHS["W4A4"], ends=7)
    parity = export_onnx(model, tmp_path / "right.onnx", [x])
    for how in BREAKS:

        def wrong(program, how=how, **rest):
            return integer_graph(program if rest.get("taps") else broken(program, how), **rest)

        monkeypatch.setattr("spequant.deploy.formats.onnx.integer_graph", wrong)
        with pytest.raises(ValueError, match=r"^onnxruntime.*(values of output|another arg-max)"):
            export_onnx(model, tmp_path / "net.onnx", [x])
        assert [path.name for path in tmp_path.iterdir()] == ["right.onnx"], how
    assert parity.values[0].apart < 0.02 and str(parity).startswith("the engine answers as the network")


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "qonnx"])
def test_every_engine_is_held_to_it_at_every_width(kind, engine, width):
    """Also where an inner layer is wrong, and the outputs follow the network's more or less."""
    pytest.importorskip(engine)
    x = images()[:40]
    model = prepared(network(kind), x, *WIDTHS[width], ends=7)
    program = lower(model, x[:1])

    def check(made):
        graph = quant_graph(made) if engine == "qonnx" else integer_graph(made)
        run = ENGINES[engine](graph.SerializeToString(), 1)
        compare_answers(model, program, run, as_batches([x])).check(engine)

    check(program)
    for how, which in [*((how, -1) for how in BREAKS), ("sign flipped", 1), ("channels swapped", 1)]:
        with pytest.raises(ValueError, match=f"^{engine}"):
            check(broken(program, how, which))


WRONG = {
    "scale off": lambda y: 1.25 * y,
    "sign flipped": lambda y: -y,
    "samples swapped": lambda y: y[::-1].copy(),
    "constant": lambda y: 0 * y + y.mean(0),
    "shifted": lambda y: y + y.std() / 4,
}


@NEEDS_ONNXSCRIPT
@pytest.mark.parametrize("kind", ["boxes", *(pytest.param(k, marks=pytest.mark.slow) for k in KINDS if k != "boxes")])
def test_the_mixed_form_is_held_to_it(kind):
    """Its graph is made of the network itself: wrong is what an engine makes of it."""
    x = images()
    model = prepared(network(kind), x, *WIDTHS["W4A4"], ends=7)
    mixed = mixed_graph(model, x[:1])
    run = onnxruntime(mixed.graph.SerializeToString(), 1)
    answers(model, mixed, run, as_batches([x])).check("onnxruntime")
    for how, wrong in WRONG.items():
        parity = answers(model, mixed, lambda feed, wrong=wrong: [wrong(run(feed)[0])], as_batches([x]))
        with pytest.raises(ValueError, match=r"^onnxruntime"):
            parity.check("onnxruntime")
            pytest.fail(how)
