"""What a run would take, from some of its steps; nothing is written."""

import re
from dataclasses import replace

import pytest

from spequant.recipes import RECIPES, dry_run
from spequant.recipes.dry_run import Estimate
from spequant.recipes.schema import Quantization

QUANT = Quantization(percentile=99.9)
"""whose ranges are found at once"""


def test_what_a_run_would_take(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = RECIPES["digits-w2a2-speq"]()
    data = replace(recipe.data, images=100, held_out=50)
    recipe = replace(recipe, data=data, network=replace(recipe.network, weights=None), quant=QUANT)
    found = dry_run(replace(recipe, train=replace(recipe.train, epochs=7, batch_size=16, tracker="tensorboard")))
    assert (found.samples, found.epochs, found.steps, found.processes) == ((100, 50, 500), 7, 7 * 6, 1)
    assert (found.warm, found.timed) == (3, 3)  # of the six steps of an epoch
    assert found.step_seconds > 0 and found.seconds_first > 0 and found.peak_bytes > 2**20
    assert 0 < found.weight_bytes < found.parameters  # a quarter of a byte a weight, most of them
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(ValueError, match=r"train\.epochs is 0; expected 1"):
        dry_run(replace(recipe, train=replace(recipe.train, epochs=0)))


def test_hours_and_words():
    found = Estimate((1200, 97, 500), 7, 126, 2, 4096, 1024, 72.0, 3, 10, 2.0, 3 * 2**20)
    assert found.hours == pytest.approx((72 + 2 * 126) / 3600) == 0.09
    said = "\n".join(found.lines())
    assert "1200 to train, 97 held out, 500 to test" in said and "126 in 7 epochs, on 2 process" in said
    assert re.search(r"4096 parameters, 1\.0 KiB.*\n.* 3 MiB.*\n.* 2000\.0 ms, median of 10; .* 3 in 72\.0 s", said)
