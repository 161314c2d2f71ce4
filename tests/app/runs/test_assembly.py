"""What a recipe trains with, brought together: batches that do not divide."""

from dataclasses import replace

import pytest
import torch

from spequant.app.recipes import RECIPES
from spequant.app.runs.assembly import assemble
from spequant.train import make_accelerator


@pytest.mark.parametrize("rank", [0, 1])
def test_a_batch_that_does_not_split_is_refused_in_every_process(rank, monkeypatch):
    accelerator = make_accelerator(device="cpu")
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
    recipe = RECIPES["digits-float"]()
    recipe = replace(recipe, train=replace(recipe.train, batch_size=12, accumulate=4, device="cpu"))
    said = r"train\.batch_size is 12 and train\.accumulate 4, on 2 process.*--train\.batch-size 16,"
    with pytest.raises(ValueError, match=said):
        assemble(recipe, accelerator)
