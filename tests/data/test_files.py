"""CIFAR-100 and Fashion-MNIST from their files: what is read, where it is looked for, errors that name the file."""

import gzip

import numpy as np
import pytest
import torch
from filelock import FileLock, Timeout

from spequant.data import fashion_mnist, load_cifar10, load_cifar100, load_digits, load_fashion_mnist
from spequant.recipes.build import LOADERS, build_data
from spequant.recipes.schema import Data

SHAPES = {name: (6 if name.startswith("train") else 4, *shape[1:]) for name, shape in fashion_mnist.FILES.items()}


def test_cifar100(cifar100_data):
    train, test = load_cifar100(cifar100_data)
    assert (len(train), len(test), train.classes, train.images.shape[1:]) == (50_000, 10_000, 100, (3, 32, 32))
    assert torch.bincount(train.labels).tolist() == [500] * 100 and torch.bincount(test.labels).tolist() == [100] * 100
    row = np.fromfile(cifar100_data / "cifar-100-binary" / "test.bin", np.uint8, 3074, offset=7 * 3074)
    assert int(test.labels[7]) == row[1] and test.images[7].flatten().tolist() == row[2:].tolist()
    pixels = train.images[::10].transpose(0, 1).flatten(1).float() / 255
    torch.testing.assert_close(pixels.mean(1), torch.tensor(train.mean), rtol=0, atol=5e-3)
    torch.testing.assert_close(pixels.std(1), torch.tensor(train.std), rtol=0, atol=5e-3)


def test_damaged_or_missing_cifar100_names_the_file(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    with pytest.raises(FileNotFoundError, match=r"train\.bin does not exist; expected 153700000 bytes.*CIFAR-100"):
        load_cifar100(tmp_path)
    folder.mkdir()
    (folder / "train.bin").write_bytes(b"\0" * 153_700_000)
    (folder / "test.bin").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"test\.bin has 100 bytes; expected 30740000"):
        load_cifar100(folder)
    (folder / "test.bin").write_bytes(b"\x64" * 30_740_000)
    with pytest.raises(ValueError, match="holds the label 100; expected 0 to 99"):
        load_cifar100(tmp_path)


def idx(shape, value=0):
    return bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes() + bytes([value]) * int(np.prod(shape))


def write(folder, *, packed=False, value=1):
    folder.mkdir(parents=True, exist_ok=True)
    for name, shape in SHAPES.items():
        content = idx(shape, value)
        (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Sets of six and four images, and no package of Debian's."""
    monkeypatch.setattr(fashion_mnist, "FILES", SHAPES)
    monkeypatch.setattr(fashion_mnist, "DEBIAN", tmp_path / "debian")
    return tmp_path


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("below", ["", "fashion-mnist", "FashionMNIST/raw"])
def test_fashion_mnist_is_found_below_the_root(small, below, packed):
    write(small / "root" / below, packed=packed)
    train, test = load_fashion_mnist(small / "root")
    assert train.images.shape == (6, 1, 28, 28) and test.labels.tolist() == [1] * 4


def test_without_a_root_that_holds_it_debians_package_serves(small):
    write(small / "debian", packed=True, value=2)
    assert load_fashion_mnist()[0].labels.tolist() == load_fashion_mnist(small)[0].labels.tolist() == [2] * 6
    write(small / "root", value=3)
    assert load_fashion_mnist(small / "root")[0].labels.tolist() == [3] * 6


def test_downloading_is_torchvisions(small, monkeypatch):
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
    train, held, test = build_data(Data("fashion-mnist", root=tmp_path, held_out=1000), torch.device("cpu"))
    assert held is not None and (len(train), len(held), len(test)) == (59_000, 1000, 10_000)
    assert torch.bincount(test.labels).tolist() == [1000] * 10
    pixels = train.images.float() / 255
    assert abs(pixels.mean() - train.mean[0]) < 1e-3 and abs(pixels.std() - train.std[0]) < 1e-3


@pytest.mark.parametrize(("name", "title"), [("cifar10", "CIFAR-10"), ("cifar100", "CIFAR-100")])
def test_a_set_without_a_place_of_its_own_needs_a_root(name, title, monkeypatch):
    monkeypatch.delenv("SPEQUANT_DATA", raising=False)
    with pytest.raises(ValueError, match=rf"data\.root is not set; expected the folder of {title}:"):
        build_data(Data(name), torch.device("cpu"))


def test_torchvisions_damaged_layout_is_named(tmp_path):
    pytest.importorskip("torchvision.datasets")
    (tmp_path / "cifar-10-batches-py").mkdir()
    with pytest.raises(ValueError, match=r"cifar-10-batches-py is missing files or damaged.*fetch it anew"):
        load_cifar10(tmp_path)


def test_one_run_at_a_time_downloads_into_a_folder(tmp_path, monkeypatch):
    def load(root, download):
        with pytest.raises(Timeout):
            FileLock(root / ".download.lock").acquire(timeout=0)
        return load_digits()

    monkeypatch.setitem(LOADERS, "cifar10", load)
    train, _, _ = build_data(Data("cifar10", tmp_path / "new", download=True, held_out=0), torch.device("cpu"))
    assert len(train) > 1000 and FileLock(tmp_path / "new/.download.lock").acquire(timeout=0)
