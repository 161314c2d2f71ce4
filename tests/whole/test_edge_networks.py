"""Everyday networks of edges as integers throughout, and the tables of them in docs/coverage.md
(`SPEQUANT_WRITE=1 pytest -m slow tests/whole/test_edge_networks.py` writes them anew)."""

import copy
import fcntl
import os
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import Tensor, nn

import spequant
from spequant.deploy import Twin, lower, quantize_biases
from spequant.deploy.last_bits import other_last_bits
from spequant.deploy.outputs import outputs_by_name
from spequant.deploy.parity import AGREEMENT, Parity
from spequant.quantizers import PACT, SAWB
from support.edge_networks import EDGES, made_up
from support.integer_networks import NEEDS_ONNXRUNTIME
from support.learned import answers, images_of, learn, right

pytestmark = NEEDS_ONNXRUNTIME
DOCS = Path(__file__).parents[2] / "docs" / "coverage.md"
HEAD = (
    "| integers throughout | in float | W4A4: onnxruntime, OpenVINO, twin | W2A2: onnxruntime, OpenVINO, twin |\n"
    "|---|---|---|---|\n"
)
LEARNED_HEAD = (
    "| trained for a moment | in float | right: float, W4A4, W2A2 | W4A4: onnxruntime, OpenVINO, twin | W2A2: "
    "onnxruntime, OpenVINO, twin |\n|---|---|---|---|---|\n"
)
IMAGES = 64
WIDTHS = (4, 2)
LEARNED = (
    "torchvision/shufflenet_v2_x0_5",
    "torchvision/mobilenet_v3_small",
    "torchvision/googlenet",
    "timm/efficientnet_lite0",
    "timm/mobilenetv4_conv_small",
    "timm/ghostnet_050",
    "timm/mixnet_s",
)
"""Networks whose answers are ill-conditioned with random weights: a code that a rounding tie changes spreads through
all layers. They are trained before."""
MORE = [
    "torchvision/densenet169",
    "torchvision/efficientnet_b0",
    "torchvision/efficientnet_v2_s",
    "torchvision/inception_v3",
    "torchvision/mnasnet0_5",
    "torchvision/mnasnet1_0",
    "torchvision/mobilenet_v2",
    "torchvision/mobilenet_v3_large",
    "torchvision/regnet_x_3_2gf",
    "torchvision/regnet_x_400mf",
    "torchvision/regnet_y_400mf",
    "torchvision/resnet50",
    "torchvision/resnext50_32x4d",
    "torchvision/shufflenet_v2_x1_0",
    "torchvision/squeezenet1_0",
    "timm/cspdarknet53",
    "timm/darknet53",
    "timm/dla34",
    "timm/dla46x_c",
    "timm/dpn48b",
    "timm/ecaresnet26t",
    "timm/ese_vovnet19b_dw",
    "timm/fbnetc_100",
    "timm/gernet_s",
    "timm/ghostnetv2_100",
    "timm/hardcorenas_a",
    "timm/inception_v3",
    "timm/lcnet_050",
    "timm/mnasnet_small",
    "timm/mobilenet_edgetpu_v2_xs",
    "timm/mobilenetv2_050",
    "timm/mobilenetv2_110d",
    "timm/mobilenetv3_large_100",
    "timm/repghostnet_050",
    "timm/res2net50_26w_4s",
    "timm/resnet18",
    "timm/resnet18d",
    "timm/resnet26t",
    "timm/resnetv2_50",
    "timm/rexnet_100",
    "timm/selecsls42b",
    "timm/seresnet18",
    "timm/spnasnet_100",
    "timm/tf_efficientnet_lite1",
    "timm/tinynet_e",
    "timm/vovnet39a",
    "timm/xception41",
]
"""Networks of which only that is asked: whether anything would be refused or left in float."""
STEPS = 150, 40
"""Of float training, and of training at each width after it."""


def named(row: str) -> str:
    return row.split("|")[1].strip()


def table(head: str) -> list[str]:
    return DOCS.read_text().partition(head)[2].split("\n\n")[0].splitlines()


def write_row(row: str, head: str) -> None:
    with DOCS.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = {named(r): r for r in table(head) if r} | {named(row): row}
        before, _, after = DOCS.read_text().partition(head)
        ordered = "\n".join(rows[n] for n in EDGES if n in rows)
        DOCS.write_text(before + head + ordered + "".join(after.partition("\n\n")[1:]))


def judge(row: str, islands: Iterable[str], head: str) -> None:
    print(row)
    if os.environ.get("SPEQUANT_WRITE"):
        write_row(row, head)
    else:
        assert not islands
        if head == HEAD:
            assert row in table(head)
        else:  # what is learned, and the last answers, depend on the last bits of a processor and its threads
            assert named(row) in [named(r) for r in table(head) if r]


def per_cent(shares: Iterable[float]) -> str:
    return f"{', '.join(f'{100 * share:.1f}' for share in shares)} %"


def low_bit(network: nn.Module, bits: int, x: Tensor) -> nn.Module:
    model = spequant.prepare(network, weight=SAWB(bits), act=PACT(bits), between=8)
    spequant.calibrate(model, x.split(64), samples=len(x))
    return model.eval()


def finish(model: nn.Module, x: Tensor) -> None:
    """What recipes do at the end of a run."""
    spequant.align_ranges(model, x[:1])
    spequant.reestimate_batch_norm(model, x[:256].split(64))
    quantize_biases(model, x[:1])


def exported(name: str, bits: int, path: Path) -> tuple[list[str], list[float]]:
    """(float islands, shares of answers that are the network's in onnxruntime, in OpenVINO, and of the twin), of random
    weights and made-up samples."""
    torch.manual_seed(0)
    edge = EDGES[name]
    network, x = edge.make(), made_up(IMAGES, edge.shape)
    spequant.reestimate_batch_norm(network, [x])  # which random weights leave as if they were trained
    model = low_bit(network.eval(), bits, x)
    finish(model, x)
    reports = [spequant.export(model, path.with_suffix(end), x.split(16)) for end in (".onnx", ".xml")]
    with torch.no_grad():
        expected = outputs_by_name(model(x))
        with other_last_bits(model):
            moved = outputs_by_name(model(x))
    parity = Parity()
    for output, got in Twin(lower(model, x[:1])).outputs(x).items():
        parity.add(expected[output], got.numpy(), None, moved[output], output=output, choices=False)
    parity.check("the twin")
    islands = [island for report in reports for island in report.islands]
    return islands, [*(report.parity.agreement for report in reports), parity.agreement]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", [n for n in EDGES if n not in LEARNED])
def test_a_network_of_edges_is_integers_throughout(name, tmp_path):
    cells, islands = [], set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        for bits in WIDTHS:
            inside, shares = exported(name, bits, tmp_path / "net")
            islands |= set(inside)
            assert min(shares) == 1, (bits, shares)
            cells.append(per_cent(shares))
    judge(f"| {name} | {', '.join(sorted(islands)) or 'nothing'} | {' | '.join(cells)} |", islands, HEAD)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", MORE)
def test_a_check_finds_nothing_in_float_in_more_networks(name):
    """Random weights, W4A4: their answers are not compared."""
    torch.manual_seed(0)
    library = torchvision.models.get_model if name.startswith("torchvision/") else timm.create_model
    network, x = library(name.partition("/")[2], num_classes=10).eval(), torch.randn(8, 3, 96, 96)
    spequant.reestimate_batch_norm(network, [x])
    model = low_bit(network.eval(), 4, x)
    for format in ("onnx", "tflite", "c"):
        found = spequant.check_export(model, x[:1], format)
        assert found.ok and not found.floats, found


def test_the_docs_name_these():
    text = DOCS.read_text()
    assert all(f"`{name}`" in text for name in MORE)


@cache
def pictures(folder: Path) -> tuple[tuple[Tensor, Tensor], ...]:
    """(images, labels) to train with, and held out."""
    return images_of(folder / "train"), images_of(folder / "val")


def compared(model: nn.Module, path: Path, x: Tensor, y: Tensor) -> tuple[list[str], list[float], float]:
    """(float islands, shares of `x` answered as by the network in onnxruntime, in OpenVINO and by the twin; per cent
    of right answers). Every value is within the limits."""
    islands, runs = list[str](), {}
    first = [(x[i : i + 16], y[i : i + 16]) for i in range(0, IMAGES, 16)]
    for end in (".onnx", ".xml"):
        islands += spequant.export(model, path.with_suffix(end), first).islands  # codes are compared on these
        runs[end] = spequant.load(path.with_suffix(end))
    runs["the twin"] = Twin(lower(model, x[:1]))
    expected, shares = answers(model, x), []
    with other_last_bits(model):
        moved = answers(model, x)
    for who, run in runs.items():
        parity = Parity()
        parity.add(expected, answers(run, x).numpy(), y, moved)
        print(who, parity)
        parity.check(who)
        shares.append(parity.agreement)
    return islands, shares, right(expected, y)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", LEARNED)
def test_a_network_that_has_learned_something_is_integers_throughout(name, tiny_imagenet, tmp_path):
    (x, y), (held_out, labels) = pictures(tiny_imagenet)
    torch.manual_seed(0)
    network, cells, islands = EDGES[name].make(), [], set()
    learn(network, x, y, STEPS[0], 2e-3)
    spequant.reestimate_batch_norm(network, x[:256].split(64))
    rates = [right(answers(network, held_out), labels)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        for bits in WIDTHS:
            model = low_bit(copy.deepcopy(network), bits, x[:128])
            learn(model, x, y, STEPS[1], 1e-3)
            finish(model, x)
            inside, shares, rate = compared(model, tmp_path / "net", held_out, labels)
            islands |= set(inside)
            assert min(shares) >= AGREEMENT, (bits, shares)
            cells.append(per_cent(shares))
            rates.append(rate)
    told = ", ".join(f"{rate:.1f}" for rate in rates)
    row = f"| {name} | {', '.join(sorted(islands)) or 'nothing'} | {told} % | {' | '.join(cells)} |"
    judge(row, islands, LEARNED_HEAD)


@pytest.mark.parametrize("head", [HEAD, LEARNED_HEAD])
def test_the_rows_in_the_docs_are_of_these_networks(head):
    names = [named(row) for row in table(head) if row]
    of_table = [name for name in EDGES if (name in LEARNED) == (head == LEARNED_HEAD)]
    assert names == of_table
