"""CIFAR-10 from disk: the official binary layout, or torchvision's pickled one."""

from pathlib import Path

import numpy as np
import torch

from spequant.data.images import ImageSet

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # those that the published float weights were trained with
ROW = 1 + 3 * 32 * 32
IMAGES = 10_000
SOURCE = "https://www.cs.toronto.edu/~kriz/cifar.html (CIFAR-10 binary version)"
FOLDER, PICKLED = "cifar-10-batches-bin", "cifar-10-batches-py"
TRAIN_FILES = tuple(f"data_batch_{i}.bin" for i in range(1, 6))


def load_cifar10(root: str | Path, download: bool = False) -> tuple[ImageSet, ImageSet]:
    """(train, 50,000 images; test, 10,000), uint8 3 x 32 x 32.

    root: holds, or is, `cifar-10-batches-bin`; or holds torchvision's `cifar-10-batches-py`, which `download` fetches.
    FileNotFoundError or ValueError: a file that is missing or damaged, with its name and the size expected.
    """
    root = Path(root)
    folder = root if root.name == FOLDER else root / FOLDER
    if not folder.is_dir() and (download or (root / PICKLED).is_dir()):
        return _from_torchvision(root, True, download), _from_torchvision(root, False, download)
    train = [_read(folder / name) for name in TRAIN_FILES]
    return _image_set(np.concatenate(train)), _image_set(_read(folder / "test_batch.bin"))


def _read(path: Path) -> np.ndarray:
    """Rows (10,000, 3073): label, then 3 planes of 32 x 32."""
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected {IMAGES * ROW} bytes, one of the six files of CIFAR-10's binary layout. "
            f"Set data.root to the folder that holds {FOLDER}; to be had at {SOURCE}, or with data.download"
        )
    size = path.stat().st_size
    if size != IMAGES * ROW:
        raise ValueError(f"{path} has {size} bytes; expected {IMAGES * ROW}. Fetch it anew from {SOURCE}")
    rows = np.fromfile(path, np.uint8).reshape(IMAGES, ROW)
    if rows[:, 0].max() > 9:
        raise ValueError(f"{path} holds the label {rows[:, 0].max()}; expected 0 to 9. Fetch it anew from {SOURCE}")
    return rows


def _image_set(rows: np.ndarray) -> ImageSet:
    images = torch.from_numpy(rows[:, 1:].reshape(-1, 3, 32, 32).copy())
    return ImageSet(images, torch.from_numpy(rows[:, 0].astype(np.int64)), MEAN, STD, 10)


def _from_torchvision(root: Path, train: bool, download: bool) -> ImageSet:
    from torchvision.datasets import CIFAR10  # lazily: only this layout needs it

    data = CIFAR10(root, train=train, download=download)
    images = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return ImageSet(images, torch.tensor(data.targets), MEAN, STD, 10)
