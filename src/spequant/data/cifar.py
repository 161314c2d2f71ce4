"""CIFAR-10 and CIFAR-100 from disk, in the official binary layout or torchvision's pickled one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spequant.data.images import ImageSet
from spequant.data.settings import ImagesOnDisk, fetching, required_folder
from spequant.extras import needs

PIXELS = 3 * 32 * 32
FINE = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
wardrobe whale willow_tree wolf woman worm
"""
"""Names of CIFAR-100's fine labels, in their order."""
SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"


@dataclass(frozen=True)
class _Layout:
    """Files of one of the two sets. A row of a binary file has `label_bytes` labels and the pixels of an image.

    Attributes:
        title: Name of the set; without the hyphen, the name of torchvision's class.
        folder: Folder of the binary files.
        pickled: Folder of torchvision's files.
        train, test: Names of the binary files.
        rows: Images per training file.
        label_bytes: Labels per row, one byte each; the last one is used.
        names: Of the classes.
        mean, std: Per channel, of pixels scaled to [0, 1].
    """

    title: str
    folder: str
    pickled: str
    train: tuple[str, ...]
    test: str
    rows: int
    label_bytes: int
    names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @property
    def classes(self) -> int:
        return len(self.names)

    @property
    def source(self) -> str:
        return f"{SITE} ({self.title} binary version)"


CIFAR10_LAYOUT = _Layout(
    title="CIFAR-10",
    folder="cifar-10-batches-bin",
    pickled="cifar-10-batches-py",
    train=tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
    test="test_batch.bin",
    rows=10_000,
    label_bytes=1,
    names=("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    mean=(0.485, 0.456, 0.406),  # with these the published float weights were trained
    std=(0.229, 0.224, 0.225),
)
CIFAR100_LAYOUT = _Layout(
    title="CIFAR-100",
    folder="cifar-100-binary",
    pickled="cifar-100-python",
    train=("train.bin",),
    test="test.bin",
    rows=50_000,
    label_bytes=2,
    names=tuple(FINE.split()),
    mean=(0.507, 0.487, 0.441),  # of the training images
    std=(0.267, 0.256, 0.276),
)
TEST_ROWS = 10_000


@dataclass(frozen=True, kw_only=True)
class CIFAR10(ImagesOnDisk):
    """CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels, 10 classes."""

    def load(self, network: str) -> tuple[ImageSet, ImageSet]:
        root = required_folder(CIFAR10_LAYOUT.title, self.root)
        with fetching(root, self.download):
            return load_cifar10(root, self.download)


@dataclass(frozen=True, kw_only=True)
class CIFAR100(ImagesOnDisk):
    """CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels, 100 classes."""

    def load(self, network: str) -> tuple[ImageSet, ImageSet]:
        root = required_folder(CIFAR100_LAYOUT.title, self.root)
        with fetching(root, self.download):
            return load_cifar100(root, self.download)


def load_cifar10(root: str | Path, download: bool = False) -> tuple[ImageSet, ImageSet]:
    """Read CIFAR-10.

    Args:
        root: The folder `cifar-10-batches-bin`, or the folder that contains it or torchvision's `cifar-10-batches-py`.
        download: Whether torchvision fetches `cifar-10-batches-py` into `root` if there is no binary layout.

    Returns:
        (train, 50,000 images; test, 10,000 images), uint8 3 x 32 x 32.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, e.g. has another size.
    """
    return _load(CIFAR10_LAYOUT, Path(root), download)


def load_cifar100(root: str | Path, download: bool = False) -> tuple[ImageSet, ImageSet]:
    """Read CIFAR-100 with its 100 fine labels.

    Args:
        root: The folder `cifar-100-binary`, or the folder that contains it or torchvision's `cifar-100-python`.
        download: Whether torchvision fetches `cifar-100-python` into `root` if there is no binary layout.

    Returns:
        (train, 50,000 images; test, 10,000 images), uint8 3 x 32 x 32.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, e.g. has another size.
    """
    return _load(CIFAR100_LAYOUT, Path(root), download)


def _load(layout: _Layout, root: Path, download: bool) -> tuple[ImageSet, ImageSet]:
    folder = root if root.name == layout.folder else root / layout.folder
    if not folder.is_dir() and (download or (root / layout.pickled).is_dir()):
        return _from_torchvision(layout, root, True, download), _from_torchvision(layout, root, False, download)
    train = [_read(layout, folder / name, layout.rows) for name in layout.train]
    return _image_set(layout, np.concatenate(train)), _image_set(layout, _read(layout, folder / layout.test, TEST_ROWS))


def _read(layout: _Layout, path: Path, rows: int) -> np.ndarray:
    """Return the uint8 array (rows, label bytes + pixels) of a binary file."""
    expected = rows * (layout.label_bytes + PIXELS)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected {expected} bytes, a file of {layout.title}'s binary layout. "
            f"Set data.root to the folder that holds {layout.folder}; get the set from {layout.source}, or with "
            "data.download"
        )
    size = path.stat().st_size
    if size != expected:
        raise ValueError(f"{path} has {size} bytes; expected {expected}. Fetch it anew from {layout.source}")
    content = np.fromfile(path, np.uint8).reshape(rows, -1)
    largest = content[:, layout.label_bytes - 1].max()
    if largest >= layout.classes:
        raise ValueError(
            f"{path} holds the label {largest}; expected 0 to {layout.classes - 1}. Fetch it anew from {layout.source}"
        )
    return content


def _image_set(layout: _Layout, rows: np.ndarray) -> ImageSet:
    images = torch.from_numpy(rows[:, layout.label_bytes :].reshape(-1, 3, 32, 32).copy())
    labels = torch.from_numpy(rows[:, layout.label_bytes - 1].astype(np.int64))
    return ImageSet(images, labels, layout.mean, layout.std, layout.classes, layout.names)


def _from_torchvision(layout: _Layout, root: Path, train: bool, download: bool) -> ImageSet:
    datasets = needs("torchvision.datasets", "vision")
    try:
        data = getattr(datasets, layout.title.replace("-", ""))(root, train=train, download=download)
    except RuntimeError as error:
        raise ValueError(
            f"{root / layout.pickled} is missing files or damaged ({error}); remove it and fetch it anew with "
            f"data.download, or from {layout.source}"
        ) from error
    images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return ImageSet(images, torch.tensor(data.targets), layout.mean, layout.std, layout.classes, layout.names)
