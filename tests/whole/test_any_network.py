"""Any network: prepare, calibrate, a SPEQ step, a switch of precision, a round trip of the state; and how much of each
is quantized, which makes the table of docs/coverage.md (`SPEQUANT_WRITE=1 make test-all` writes it anew)."""

import fcntl
import os
import warnings
from pathlib import Path

import pytest
import torch

import spequant
from spequant.preparation.coverage import coverage
from spequant.quantizers import PACT, SAWB
from support.covered_networks import NAMES, QUICK, TOLD, shaken, side

DOCS = Path(__file__).parents[2] / "docs" / "coverage.md"
HEAD = "| network | layers | addends | of multiply-accumulates, % | in float, % |\n|---|---|---|---|---|\n"


def named(row: str) -> str:
    return row.split("|")[1].strip()


def table() -> list[str]:
    return DOCS.read_text().partition(HEAD)[2].split("\n\n")[0].splitlines()


def write_row(row: str) -> None:
    """In its place in the docs; other processes wait for their turn."""
    with DOCS.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        rows = {named(r): r for r in table()} | {named(row): row}
        text = DOCS.read_text()
        after = text.partition(HEAD)[2].partition("\n\n")
        ordered = "\n".join(rows[n] for n in NAMES if n in rows)
        DOCS.write_text(text.partition(HEAD)[0] + HEAD + ordered + "\n" + "".join(after[1:]))


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
    print(row)
    if os.environ.get("SPEQUANT_WRITE"):
        write_row(row)
    else:
        assert row in table()


def test_the_docs_have_a_row_for_each():
    assert [named(row) for row in table()] == list(NAMES)
