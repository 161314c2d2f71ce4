"""Fashion-MNIST from disk (Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747): MNIST's idx files, plain or gzipped."""

import gzip
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from spequant.data.images import ImageSet
from spequant.data.settings import ImagesOnDisk, data_folder, fetching
from spequant.extras import needs

DEBIAN = Path("/usr/share/datasets/fashion-mnist")
"""Folder of the files in Debian's package dataset-fashion-mnist."""
SUBFOLDERS = ("", "fashion-mnist", "FashionMNIST/raw")
"""Folders below a root that can contain the files; the last is torchvision's."""
SOURCE = "https://github.com/zalandoresearch/fashion-mnist, or Debian's package dataset-fashion-mnist"
MEAN, STD = (0.286,), (0.353,)  # of the training images
NAMES = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
FILES = {
    "train-images-idx3-ubyte": (60_000, 28, 28),
    "train-labels-idx1-ubyte": (60_000,),
    "t10k-images-idx3-ubyte": (10_000, 28, 28),
    "t10k-labels-idx1-ubyte": (10_000,),
}
"""{name of a file: shape of its array}"""


@dataclass(frozen=True, kw_only=True)
class FashionMNIST(ImagesOnDisk):
    """Fashion-MNIST: 60,000 training and 10,000 test images of 28 x 28, 10 classes; also from Debian's package."""

    def load(self, network: str) -> tuple[ImageSet, ImageSet]:
        root = data_folder(self.root)
        with fetching(root, self.download):
            return load_fashion_mnist(root, self.download)


def load_fashion_mnist(root: str | Path | None = None, download: bool = False) -> tuple[ImageSet, ImageSet]:
    """Read Fashion-MNIST, images of ten kinds of clothes.

    Args:
        root: The folder of the four files, or the folder that contains it as `fashion-mnist` or torchvision's
            `FashionMNIST/raw`. If `root` is None or has none of the files, they are read from Debian's package.
        download: Whether torchvision fetches the files into `root` if they are in none of these folders.

    Returns:
        (train, 60,000 images; test, 10,000 images), uint8 1 x 28 x 28.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, e.g. has another size.
    """
    candidates = [Path(root) / subfolder for subfolder in SUBFOLDERS] if root is not None else []
    folder = next((path for path in [*candidates, DEBIAN] if any(_file(path, name) for name in FILES)), None)
    if folder is None and download and root is not None:
        needs("torchvision.datasets", "vision").FashionMNIST(root, download=True)
        folder = candidates[-1]
    images, labels, test_images, test_labels = (
        _read(folder or (candidates or [DEBIAN])[0], name, shape) for name, shape in FILES.items()
    )
    return _image_set(images, labels), _image_set(test_images, test_labels)


def _file(folder: Path, name: str) -> Path | None:
    """Return the path of the file `name` or `name`.gz, or None if neither exists."""
    return next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)


def _read(folder: Path, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the uint8 array of an idx file: bytes 0, 0, 8 (uint8), number of axes, lengths (big-endian), data."""
    header = bytes([0, 0, 8, len(shape)]) + np.array(shape, ">u4").tobytes()
    expected = len(header) + int(np.prod(shape))
    path = _file(folder, name)
    if path is None:
        raise FileNotFoundError(
            f"{folder / name} (or .gz) does not exist; expected {expected} bytes, unpacked. Set data.root to the "
            f"folder that holds it; get the set from {SOURCE}, or with data.download and data.root"
        )
    remedy = f"Fetch it anew from {SOURCE}"
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be unpacked ({error}); expected {expected} bytes in it. {remedy}") from error
    if len(content) != expected:
        raise ValueError(f"{path} has {len(content)} bytes, unpacked; expected {expected}. {remedy}")
    if not content.startswith(header):
        raise ValueError(
            f"{path} begins with {content[: len(header)].hex()}; expected {header.hex()}, the header of a uint8 array "
            f"of shape {shape}. {remedy}"
        )
    array = np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)
    if len(shape) == 1 and array.max() > 9:
        raise ValueError(f"{path} holds the label {array.max()}; expected 0 to 9. {remedy}")
    return array


def _image_set(images: np.ndarray, labels: np.ndarray) -> ImageSet:
    pixels = torch.from_numpy(images.copy()).unsqueeze(1)
    return ImageSet(pixels, torch.from_numpy(labels.astype(np.int64)), MEAN, STD, len(NAMES), NAMES)
