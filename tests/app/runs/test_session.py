"""What a run says: each phase before it begins, and the time that compiling took the last time."""

from dataclasses import replace
from types import SimpleNamespace

from spequant.app.recipes import RECIPES
from spequant.app.runs import assembly, images, run, session
from support.reporters import Said


def recipe():
    """Few digits, one epoch of two steps, compiled."""
    base = RECIPES["digits-w2a2-retrain"]()
    data = replace(base.data, images=128, held_out=300)
    quant = replace(base.quant, percentile=99.9)
    train = replace(base.train, epochs=1, device="cpu", layers_every=1, compile=True)
    return replace(base, data=data, quant=quant, train=train, network=replace(base.network, weights=None))


def told(folder, recipe) -> Said:
    run(recipe, folder, said := Said())
    return said


def test_each_phase_is_said_and_how_long_compiling_takes_once_that_is_known(tmp_path, monkeypatch):
    """Nothing is compiled here, and a clock goes on by half a minute each time it is read."""
    wrap, seconds = assembly.wrap, iter(range(0, 1000, 30))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(images, "REESTIMATE", 128)
    monkeypatch.setattr(assembly, "wrap", lambda model, compile: wrap(model, compile=False))
    monkeypatch.setattr(session, "time", SimpleNamespace(perf_counter=lambda: next(seconds)))
    said = told(tmp_path / "first", recipe())
    measuring = ["measuring on 300 held-out samples", "looking at the layers"]
    assert said.phases == [
        *("loading data", "loading the network", "calibrating", *measuring),
        "compiling the training step, which can take a minute",
        *("training, 1 epochs of 2 steps", *measuring),
        *("measuring batch norm's statistics", "testing on 500 samples", measuring[0]),
    ]
    assert said.counts == {measuring[0]: (2, 2), "testing on 500 samples": (2, 2)}
    again = told(tmp_path / "again", recipe())
    assert again.phases[5] == "compiling the training step, about 30 s, as the last time"
