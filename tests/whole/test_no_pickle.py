"""What is read executes nothing: weight files that somebody else made are no programs."""

import pickle
from pathlib import Path

import pytest
import torch

from spequant.models import load_weights, resnet8


def test_a_pickle_is_not_executed(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    (tmp_path / "evil.pt").write_bytes(pickle.dumps({"conv1.weight": Evil()}))
    torch.save({"conv1.weight": Evil()}, tmp_path / "evil.th")
    for name in ("evil.pt", "evil.th"):
        with pytest.raises(ValueError, match="no readable weight file"):
            load_weights(resnet8(), tmp_path / name)
    assert not (tmp_path / "executed").exists()
