"""CIFAR-10 and CIFAR-100 from their files: images and labels, errors that name the file."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spequant.data import cifar, load_cifar10, load_cifar100


def test_cifar10(shared_data):
    train, test = load_cifar10(shared_data)
    assert len(train) == 50_000 and len(test) == 10_000
    assert torch.bincount(train.labels).tolist() == [5000] * 10
    assert train.images[0, :, 0, 0].tolist() == [59, 62, 63] and train.labels[0] == 6  # a frog
    assert train.images.shape[1:] == (3, 32, 32) and (train.classes, train.mean) == (10, (0.485, 0.456, 0.406))


def test_cifar100(cifar100_data):
    train, test = load_cifar100(cifar100_data)
    assert (len(train), len(test), train.classes, train.images.shape[1:]) == (50_000, 10_000, 100, (3, 32, 32))
    assert torch.bincount(train.labels).tolist() == [500] * 100 and torch.bincount(test.labels).tolist() == [100] * 100
    row = np.fromfile(cifar100_data / "cifar-100-binary" / "test.bin", np.uint8, 3074, offset=7 * 3074)
    assert int(test.labels[7]) == row[1] and test.images[7].flatten().tolist() == row[2:].tolist()
    pixels = train.images[::10].transpose(0, 1).flatten(1).float() / 255
    torch.testing.assert_close(pixels.mean(1), torch.tensor(train.mean), rtol=0, atol=5e-3)
    torch.testing.assert_close(pixels.std(1), torch.tensor(train.std), rtol=0, atol=5e-3)


def small(monkeypatch):
    """Expect five rows per training file, and three in the test file."""
    for name in ("CIFAR10_LAYOUT", "CIFAR100_LAYOUT"):
        monkeypatch.setattr(cifar, name, replace(getattr(cifar, name), rows=5))
    monkeypatch.setattr(cifar, "TEST_ROWS", 3)


def test_damaged_or_missing_cifar10_names_the_file(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"data_batch_1\.bin does not exist; expected 30730000 bytes"):
        load_cifar10(tmp_path)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    (folder / "data_batch_1.bin").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin has 100 bytes; expected 30730000"):
        load_cifar10(tmp_path)
    small(monkeypatch)
    (folder / "data_batch_1.bin").write_bytes(b"\x0b" * 5 * 3073)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin holds the label 11; expected 0 to 9"):
        load_cifar10(tmp_path)


def test_damaged_or_missing_cifar100_names_the_file(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-100-binary"
    with pytest.raises(FileNotFoundError, match=r"train\.bin does not exist; expected 153700000 bytes.*CIFAR-100"):
        load_cifar100(tmp_path)
    folder.mkdir()
    (folder / "train.bin").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"train\.bin has 100 bytes; expected 153700000"):
        load_cifar100(folder)
    small(monkeypatch)
    (folder / "train.bin").write_bytes(b"\0" * 5 * 3074)
    (folder / "test.bin").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"test\.bin has 100 bytes; expected 9222"):
        load_cifar100(folder)
    (folder / "test.bin").write_bytes(b"\x64" * 3 * 3074)
    with pytest.raises(ValueError, match=r"test\.bin holds the label 100; expected 0 to 99"):
        load_cifar100(tmp_path)


def test_torchvisions_damaged_layout_is_named(tmp_path):
    pytest.importorskip("torchvision.datasets")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match=r"cifar-10-batches-py is .*data\.download"):
        load_cifar10(tmp_path)
