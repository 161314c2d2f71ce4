"""Whether an engine answers as the network: ties are told from bugs, other answers refused."""

import re
from functools import partial

import numpy as np
import pytest
import torch

import spequant
from spequant.data import eval_batches
from spequant.deploy import compare_answers, integer_graph, lower, quantize_biases
from spequant.deploy.compare import forced
from spequant.deploy.engines import ENGINES
from spequant.deploy.inputs import as_batches
from spequant.deploy.operations import Weighted
from spequant.deploy.parity import CodeCount, Parity
from spequant.models import resnet18
from spequant.quantizers import PACT, SAWB
from support.cifar_networks import calibrated_resnet20
from support.clipping import clipped, clips
from support.integer_networks import NEEDS_ONNXRUNTIME, lowered


@NEEDS_ONNXRUNTIME
def test_comparison_tells_ties_from_bugs():
    """An engine whose codes are one off is found, layer by layer, and its export refused."""
    case, start = lowered("two bits"), partial(ENGINES["onnxruntime"], threads=1)
    program, x = case.program, case.x
    target = [op for op in program.integer_ops if isinstance(op, Weighted)][2]
    whole = integer_graph(program).SerializeToString()

    def wrong(graph):
        run, broken = start(graph), target.name.encode() in graph and len(graph) < len(whole) / 3

        def answer(feed):
            return [y ^ 1 if broken and y.dtype == np.uint8 else y for y in run(feed)]

        return answer

    batches = [(x, x.numpy(), torch.zeros(len(x), dtype=torch.long))]
    run = start(whole)
    good = compare_answers(case.model, program, run, batches, start)
    good.check("onnxruntime")
    assert good.images == len(x) and good.agreement == 1 and not any(c.forced or c.twin for c in good.codes)
    assert sum(c.torch or 0 for c in good.codes) < 100 < sum(c.count for c in good.codes if c.torch is not None)
    bad = compare_answers(case.model, program, run, batches, wrong)
    with pytest.raises(ValueError, match=f"broken engine .* in {re.escape(target.name)}"):
        bad.check("broken engine")


def compared(logits, other, labels=None, own=None) -> Parity:
    parity = Parity()
    parity.add(logits, other.numpy(), labels, own)
    return parity


def with_others(images: int, differ: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of ten classes, and others whose arg-max differs on the first so many images: the two largest are nearly
    one, and change places."""
    first = torch.eye(10)[torch.arange(images) % 10]
    logits, other = first + 0.99 * first.roll(1, 1), 0.99 * first + first.roll(1, 1)
    return logits, torch.cat([other[:differ], logits[differ:]])


def test_other_answers_are_refused():
    logits, other = with_others(200, 3)
    with pytest.raises(ValueError, match=r"an engine .* 3 of 200 images; .* 0\.5 %"):
        compared(logits, other, logits.argmax(1)).check("an engine")
    logits, other = with_others(5000, 20)
    with pytest.raises(ValueError, match=r"99\.60 %, .* 100\.00 %; .* 0\.1 points"):
        compared(logits, other, logits.argmax(1)).check("an engine")


def test_answers_at_every_position_single_values_and_few_images_are_compared():
    dense = torch.eye(10)[torch.arange(100) % 10].reshape(2, 50, 10).transpose(1, 2)  # (images, classes, positions)
    parity = compared(
        dense, torch.where(torch.arange(50) < 3, dense.roll(1, 1), dense), (torch.arange(100) % 10).reshape(2, 50)
    )
    assert (parity.images, parity.equal, parity.labelled, parity.right) == (100, 94, 100, (100, 94))
    with pytest.raises(ValueError, match="6 of 100 images"):
        parity.check("an engine")
    values = torch.linspace(-1, 1, 200).unsqueeze(1)  # one an image has no arg-max; a deviation is .58
    for by, equal, refused in ((0.03, 200, False), (0.1, 200, True), (0.2, 0, True)):
        parity = compared(values, values + by)
        assert (parity.images, parity.equal) == (200, equal)
        assert refuses(parity) is refused
    for images, differ, refused in ((1, 1, True), (2, 1, False), (2, 2, True), (3, 2, True), (4, 2, False)):
        logits, other = with_others(images, differ)
        assert refuses(compared(logits, other, logits.argmax(1))) is refused


def test_without_labels_the_order_of_what_is_nearly_one_is_no_answer():
    """Of boxes, colours, autoencoders; what the network holds apart is one."""
    logits, other = with_others(200, 100)
    assert compared(logits, other).equal == 200 and not refuses(compared(logits, other))
    labels = torch.stack([logits.argmax(1), logits.argmax(1)], 1)  # of another shape: no labels of these answers
    assert compared(logits, other, labels).equal == compared(logits, other, logits.argmax(1).float()).equal == 200
    assert compared(logits, other, logits.argmax(1)).equal == 100
    far = torch.cat([logits[:100].roll(3, 1), logits[100:]])
    assert compared(logits, far).equal == 100


def test_a_parity_says_the_verdict_first_and_then_what_came_of_it():
    logits, other = with_others(200, 1)
    good = compared(logits, other, logits.argmax(1))
    good.codes, good.saturating = [CodeCount("conv1 [0, 3]", count=1000, twin=2, forced=1, ties=1)], ["conv1"]
    assert str(good).splitlines() == [
        "the engine answers as the network: 99.50 % of 200 images with the same answer",
        f"output: {good.values[0].apart:.2g} deviations from the network's (limit of scores 0.1)",
        "accuracy: 99.50 %, the network's 100.00 %",
        "codes: 1 ops, 2 of 1,000 other than the integer twin's end to end; forced 1, 1 of them ties",
        "sums that some processors clip: conv1",
    ]
    bad = compared(logits, -logits, logits.argmax(1), -logits)
    verdict, same, values, own, accuracy = str(bad).splitlines()
    assert verdict.startswith("refused: ") and same.startswith("0.00 % of 200 images")
    assert "1 deviations" in values and own.endswith("on 200 of 200") and accuracy.startswith("accuracy: 0.00 %")
    assert re.match(
        r"Parity\(images=200, equal=0, .*values=\[Values\(output='output', kind='scores', apart=1\.0", repr(bad)
    )


def refuses(parity: Parity) -> bool:
    try:
        parity.check("an engine")
    except ValueError:
        return True
    return False


@pytest.mark.parametrize(("engine", "own", "refused"), [(30, 15, False), (31, 15, True), (31, 0, True), (5, 0, False)])
def test_an_engine_may_differ_twice_as_often_as_the_network_with_other_last_bits(engine, own, refused):
    (logits, theirs), (_, ours) = with_others(1000, engine), with_others(1000, own)
    parity = compared(logits, theirs, own=ours)
    assert (parity.images - parity.equal, parity.unstable) == (engine, own)
    if not refused:
        return parity.check("an engine")
    twice = f", .*twice the {own} " if own else "$"
    with pytest.raises(ValueError, match=rf"31 of 1000 images; .* 0\.5 %, or 2{twice}"):
        parity.check("an engine")


@pytest.mark.parametrize(
    ("found", "told"), [("avx2", True), ("avx2 avx512_vnni", False), ("neon dot", False), ("", False)]
)
def test_layers_whose_sums_this_processor_clips_are_told(found, told, monkeypatch):
    monkeypatch.setattr("spequant.deploy.processor.instruction_sets", found.split)
    wrong = Parity(codes=[CodeCount("conv1 [0, 255]", forced=3)], saturating=["conv1", "a", "b", "c"])
    with pytest.raises(ValueError, match=r"onnxruntime .* conv1 \[0, 255\] \(3\)") as error:
        wrong.check("onnxruntime")
    assert ("conv1, a, b and 1 more: " in str(error.value)) == ("--quant.end-bits 7" in str(error.value)) == told


@NEEDS_ONNXRUNTIME
@pytest.mark.slow
def test_resnet18s_codes_in_onnxruntime_are_the_twins():
    """`bench infer`'s network."""
    pytest.importorskip("torchvision")
    model = spequant.prepare(resnet18(), weight=SAWB(2), act=PACT(2))
    x = torch.randn(4, 3, 64, 64)
    spequant.calibrate(model, [x], samples=4)
    program = lower(model.eval(), x[:1])
    found, left_out = forced(program, x, ENGINES["onnxruntime"]), clipped(program)
    assert not any(f.unequal for op, f in found.items() if op.name not in left_out)
    assert program.islands() == ["layer4.1.relu_16: clamp", "avgpool: mean"]


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_whole_test_set_in_an_engine(engine, shared_data):
    """Calibrated, not trained (of trained networks: docs/deploy.md): arg-max, accuracy, and forced codes."""
    pytest.importorskip(engine)
    ends = 7 if clips() else 8  # where 8-bit sums are clipped, 7 bits are what an export is trained with
    model, test = calibrated_resnet20(shared_data, 2, ends=ends)
    x = test.normalise(test.images[:1])
    quantize_biases(model, x)
    program, start = lower(model, x), ENGINES[engine]
    batches = as_batches((inputs, labels) for inputs, labels in eval_batches(test, 500))
    parity = compare_answers(model, program, start(integer_graph(program).SerializeToString()), batches, start)
    parity.check(engine)
    assert parity.images == 10_000 and parity.agreement >= 0.995
    assert abs(parity.accuracy[0] - parity.accuracy[1]) <= 0.1


def test_of_values_it_is_told_how_far_they_are_off():
    values = torch.stack([torch.linspace(-1, 1, 200), torch.linspace(0, 5, 200)], 1)
    near = values.clone()
    near[7, 1] += 0.2
    parity = Parity()
    for part in (slice(0, 50), slice(50, 200)):
        parity.add(values[part], near[part].numpy(), None)
    assert (parity.values[0].largest, parity.values[0].mean) == pytest.approx((0.2, 0.2 / 400), rel=1e-4)
    told = str(parity).splitlines()[0]
    assert "200 samples" in told and "at most 0.2, 0.0005 in the mean" in told and "answer:" not in told
    assert parity.answers in told and not parity.of_choices
    parity.choices = True
    assert parity.answers == "100.00 % of 200 images with the same answer"
    logits, other = with_others(200, 1)
    assert compared(logits, other, logits.argmax(1)).of_choices and compared(logits, other, own=other).of_choices
    assert not compared(values[:, :1], near[:, :1], own=values[:, :1]).of_choices
