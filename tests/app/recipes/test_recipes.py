"""Recipes as the documentation shows them, with objects of a user's own."""

import pytest
import torch

from spequant.app.recipes.choices import DATA, METHOD, QUANTIZER
from spequant.app.recipes.command_line import recipe_named
from support.pages import ROOT, Page
from support.starts import start


def test_what_the_documentation_shows_runs(tmp_path, monkeypatch):
    for name in ("recipes", "how-to/own-method", "how-to/own-quantizer"):
        Page(ROOT / "docs" / f"{name}.md").write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert recipe_named("my_recipes.py:fast").method.temperature == 3.0
    train, test = DATA.named("my_parts.py:brightness")().load("a-network")
    assert (len(train), len(test)) == (384, 128) and train.labels.is_floating_point() and not train.of_classes
    settings = METHOD.named("my_methods.py:Scaled")(factor=0.3)
    assert settings.build(start(torch.nn.Linear(2, 2))).factor == 0.3
    with pytest.raises(ValueError, match="factor is 0"):
        METHOD.named("my_methods.py:Scaled")(factor=0)
    assert QUANTIZER.named("my_quantizers.py:LogClip")(decay=0.1).build(2).decay == 0.1
