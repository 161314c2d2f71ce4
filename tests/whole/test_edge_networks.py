"""Everyday networks of edges as integers throughout, and the table of them in docs/coverage.md
(`SPEQUANT_WRITE=1 pytest -m slow tests/whole/test_edge_networks.py` writes it anew)."""

import fcntl
import os
import warnings
from pathlib import Path

import pytest
import torch

import spequant
from spequant.deploy import Twin, lower, quantize_biases
from spequant.deploy.last_bits import other_last_bits
from spequant.deploy.outputs import by_name
from spequant.deploy.parity import FEW, Parity
from spequant.quantizers import PACT, SAWB
from support.edge_networks import EDGES, made_up
from support.integer_networks import NEEDS_ONNXRUNTIME

pytestmark = NEEDS_ONNXRUNTIME
DOCS = Path(__file__).parents[2] / "docs" / "coverage.md"
HEAD = (
    "| integers throughout | in float | W4A4: onnxruntime, OpenVINO, twin | W2A2: onnxruntime, OpenVINO, twin |\n"
    "|---|---|---|---|\n"
)
IMAGES = 64
SHORT = {
    "torchvision/shufflenet_v2_x0_5": "98.4, 95.3, 98.4 % at W4A4",
    "torchvision/mobilenet_v3_small": "values of the twin 0.2 deviations off at W4A4 or W2A2",
    "torchvision/googlenet": "96.9, 95.3, 96.9 % at W4A4",
    "torchvision/vgg11_bn": "not done within 900 s",
    "timm/efficientnet_lite0": "95.3, 90.6, 95.3 % at W4A4",
    "timm/mobilenetv4_conv_small": "96.9, 95.3, 96.9 % at W4A4",
    "timm/ghostnet_050": "OpenVINO: 9 of 64 other answers",
    "timm/mixnet_s": "onnxruntime: 43 of 64 other answers",
}
"""Networks that fall short with random weights, and by how much their answers are not torch's."""


def named(row: str) -> str:
    return row.split("|")[1].strip()


def table() -> list[str]:
    return DOCS.read_text().partition(HEAD)[2].split("\n\n")[0].splitlines()


def write_row(row: str) -> None:
    with DOCS.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = {named(r): r for r in table()} | {named(row): row}
        before, _, after = DOCS.read_text().partition(HEAD)
        ordered = "\n".join(rows[n] for n in EDGES if n in rows)
        DOCS.write_text(before + HEAD + ordered + "".join(after.partition("\n\n")[1:]))


def exported(name: str, bits: int, path: Path) -> tuple[list[str], list[float]]:
    """(float islands, shares of answers that are the network's in onnxruntime, in OpenVINO, and of the twin)."""
    torch.manual_seed(0)
    edge = EDGES[name]
    network, x = edge.make(), made_up(IMAGES, edge.shape)
    spequant.reestimate_batch_norm(network, [x])  # which random weights leave as if they were trained
    model = spequant.prepare(network.eval(), weight=SAWB(bits), act=PACT(bits), between=8)
    spequant.calibrate(model, [x], samples=IMAGES)
    quantize_biases(model.eval(), x[:1])
    reports = [spequant.export(model, path.with_suffix(end), x.split(16)) for end in (".onnx", ".xml")]
    with torch.no_grad():
        expected = by_name(model(x))
        with other_last_bits(model):
            moved = by_name(model(x))
    parity = Parity()
    for output, got in Twin(lower(model, x[:1])).outputs(x).items():
        parity.add(expected[output], got.numpy(), None, moved[output], output=output, choices=False)
    parity.check("the twin")
    islands = [island for report in reports for island in report.islands]
    return islands, [*(report.parity.agreement for report in reports), parity.agreement]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.xfail(reason=SHORT[n], strict=False)) if n in SHORT else n for n in EDGES],
)
def test_a_network_of_edges_is_integers_throughout(name, tmp_path):
    cells, islands = [], set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the libraries' own
        for bits in (4, 2):
            inside, shares = exported(name, bits, tmp_path / "net")
            islands |= set(inside)
            assert IMAGES * (1 - min(shares)) <= FEW, (bits, shares)
            cells.append(f"{', '.join(f'{100 * share:.1f}' for share in shares)} %")
    row = f"| {name} | {', '.join(sorted(islands)) or 'nothing'} | {' | '.join(cells)} |"
    print(row)
    if os.environ.get("SPEQUANT_WRITE"):
        write_row(row)
    else:
        assert not islands and row in table()


def test_the_rows_in_the_docs_are_of_these_networks():
    names = [named(row) for row in table() if row]
    assert names == [name for name in EDGES if name not in SHORT]
