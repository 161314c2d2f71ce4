"""Recipes as the documentation shows them, with objects of a user's own."""

import re
from pathlib import Path

import pytest
import torch

from spequant.app.recipes.choices import DATA, METHOD
from spequant.app.recipes.command_line import recipe_named
from support.starts import start

ROOT = Path(__file__).resolve().parents[3]


def test_what_the_documentation_shows_runs(tmp_path, monkeypatch):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs/recipes.md").read_text(), re.S)
    (tmp_path / "shown.py").write_text("\n".join(blocks))
    monkeypatch.chdir(tmp_path)
    assert recipe_named("shown.py:fast").method.temperature == 3.0
    train, test = DATA.named("shown.py:brightness")().load("a-network")
    assert (len(train), len(test)) == (384, 128) and train.labels.is_floating_point() and not train.of_classes
    settings = METHOD.named("shown.py:Scaled")(factor=0.3)
    assert settings.build(start(torch.nn.Linear(2, 2))).factor == 0.3
    with pytest.raises(ValueError, match="factor is 0"):
        METHOD.named("shown.py:Scaled")(factor=0)
