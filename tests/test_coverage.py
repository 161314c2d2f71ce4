"""Any network: prepare, calibrate, a SPEQ step, a switch of precision, a round trip of the state; and how much of each
is quantized, the table of docs/coverage.md (`SPEQUANT_WRITE=1 pytest tests/test_coverage.py` writes its rows)."""

import os
import warnings
from pathlib import Path

import pytest
import torch

import spequant
from spequant.coverage import coverage
from spequant.quantizers import PACT, SAWB
from support.covered_networks import NAMES, QUICK, TOLD, shaken, side

DOCS = Path(__file__).parent.parent / "docs" / "coverage.md"


def cover(name: str) -> str:
    """Everything that a user does with a network; its row of the table."""
    network, x = shaken(name), torch.randn(2, 3, side(name), side(name))
    before = {n: t.clone() for n, t in network.state_dict().items()}
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        model = spequant.prepare(network, weight=SAWB(4), act=PACT(4))
    spequant.calibrate(model, [x], samples=2, reestimate=False)
    losses = spequant.SPEQ()(model.train(), (x, torch.tensor([0, 1])))
    losses.total.backward()
    assert torch.isfinite(losses.total)
    quantized = [m for m in model.modules() if isinstance(m, spequant.Quantizer)]
    without = [m.name for m in quantized for p in m.parameters() if p.grad is None]
    assert quantized and not without, f"no gradient reached {without}"
    with torch.no_grad():
        y = model.eval()(x)
        with spequant.precision(model, spequant.Fixed(8)):
            assert not torch.equal(model(x), y)
        assert torch.equal(model(x), y)
        again = spequant.prepare(shaken(name), weight=SAWB(4), act=PACT(4), **residual(told))
        again.load_state_dict(model.state_dict())
        assert torch.equal(again.eval()(x), y)
    back = spequant.unprepare(model).state_dict()
    assert back.keys() == before.keys()
    assert all(torch.equal(back[n], before[n]) for n, _ in network.named_parameters())
    found = coverage(model, x)
    rest = ", ".join(f"{what} {100 * share:.1f}" for what, share in found.in_float.items() if share >= 0.0005)
    additions = "not traced" if any(TOLD in str(w.message) for w in told) else str(found.additions)
    return f"| {name} | {found.layers} | {additions} | {100 * found.share:.1f} | {rest} |"


def residual(told) -> dict:
    return {"residual": None} if any(TOLD in str(w.message) for w in told) else {}


@pytest.mark.timeout(900)
@pytest.mark.filterwarnings("ignore")  # the libraries' own
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_a_network_of_each_family_is_quantized_trained_and_restored(name):
    row = cover(name)
    if os.environ.get("SPEQUANT_WRITE"):
        DOCS.write_text(DOCS.read_text().replace(documented()[name], row))
    assert documented()[name] == row


def documented() -> dict[str, str]:
    """The rows of the table in docs, by network."""
    rows = [line for line in DOCS.read_text().splitlines() if line.startswith(("| torchvision/", "| timm/"))]
    return {row.split("|")[1].strip(): row for row in rows}


def test_the_table_in_docs_has_each_network_once():
    assert list(documented()) == list(NAMES)


def test_what_torchs_table_lacks_is_counted():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = torch.nn.LSTM(8, 16, batch_first=True), torch.nn.Linear(16, 16)
            self.last, self.vector = torch.nn.Linear(16, 16), torch.nn.Parameter(torch.randn(16))

        def forward(self, x):
            return self.last(self.head(self.rnn(x)[0])).flatten(0, 1) @ self.vector

    x = torch.randn(64, 5, 8)
    model = spequant.prepare(Net(), weight=SAWB(4), act=PACT(4), residual=None)
    spequant.calibrate(model, [x], samples=64)
    found = coverage(model, x)
    steps, recurrent, linear, product = 64 * 5, 4 * 16 * (8 + 16), 2 * 16 * 16, 16
    total = steps * (recurrent + linear + product)
    assert found.share == pytest.approx(steps * linear / total)
    assert found.in_float["LSTM: weights that are no layer's"] == pytest.approx(steps * recurrent / total)
