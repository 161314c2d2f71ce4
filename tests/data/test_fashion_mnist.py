"""Fashion-MNIST from its files: images and labels, the folders that are searched, errors that name the file."""

import gzip

import numpy as np
import pytest
import torch

from spequant.data import fashion_mnist, load_fashion_mnist

SHAPES = {name: (6 if name.startswith("train") else 4, *shape[1:]) for name, shape in fashion_mnist.FILES.items()}


def idx(shape, value=0):
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + bytes([value]) * int(np.prod(shape))


def write(folder, *, packed=False, value=1):
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in SHAPES.items():
        content = idx(shape, value)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Sets of six and four images; Debian's package is replaced by an empty folder."""
    monkeypatch.setattr(fashion_mnist, "FILES", SHAPES)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    return tmp_path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_is_found_below_the_root(small, below, packed):
    write(small / "root" / below, packed=packed)
    train, test = load_fashion_mnist(small / "root")
    assert train.images.shape == (6, 1, 28, 28) and test.labels.tolist() == [1] * 4


def test_debians_package_is_read_if_the_root_has_no_files(small):
    write(small / "debian", packed=True, value=2)
    assert load_fashion_mnist()[0].labels.tolist() == load_fashion_mnist(small)[0].labels.tolist() == [2] * 6
    write(small / "root", value=3)
    assert load_fashion_mnist(small / "root")[0].labels.tolist() == [3] * 6


def test_torchvision_downloads(small, monkeypatch):
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets, "FashionMNIST", lambda root, download: write(root / "FashionMNIST" / "raw"))
    assert len(load_fashion_mnist(small / "root", download=True)[0]) == 6


def test_damaged_or_missing_fashion_mnist_names_the_file(small):
    images, labels = "train-images-idx3-ubyte", "t10k-labels-idx1-ubyte"
    with pytest.raises(FileNotFoundError, match=rf"{images} \(or \.gz\) does not exist; expected 4720 bytes"):
        load_fashion_mnist(small)
    cases = [
        (labels, idx((4,))[:-1], "has 11 bytes, unpacked; expected 12"),
        (labels, idx((4,), 10), "holds the label 10; expected 0 to 9"),
        (labels, bytes(12), "begins with 0{16}; expected 0000080100000004"),
        (f"{labels}.gz", gzip.compress(idx((4,)))[:-9], "cannot be unpacked"),
        (f"{labels}.gz", b"not gzip at all", "cannot be unpacked"),
    ]
    for name, content, message in cases:
        write(small)
        (small / labels).unlink()
        (small / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name} {message}"):
            load_fashion_mnist(small)
        (small / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{labels} .* expected 12 bytes"):
        load_fashion_mnist(small)


@pytest.mark.skipif(not fashion_mnist.DEBIAN.is_dir(), reason="Debian's dataset-fashion-mnist is not installed")
def test_fashion_mnist_of_debian(tmp_path):
    train, test = load_fashion_mnist(tmp_path)
    assert (len(train), len(test)) == (60_000, 10_000)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    pixels = train.images.float() / 255
    assert abs(pixels.mean() - train.mean[0]) < 1e-3 and abs(pixels.std() - train.std[0]) < 1e-3
