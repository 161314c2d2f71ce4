"""Image files of anybody's, named one by one or by folders and patterns, and read as those of a test set are."""

import glob
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from spequant.data.configuration import Configuration
from spequant.data.image_files import open_image, rgb
from spequant.data.vision import vision

PICTURE_MODES = {1: "L", 3: "RGB"}
"""{channels: pillow's mode}"""


@dataclass(frozen=True)
class Listing:
    """Files, each once, in their order; and faults: {argument: why it stands for no file}."""

    files: tuple[Path, ...]
    faults: dict[str, str]


def list_images(arguments: Iterable[str | Path]) -> Listing:
    """Find the image files that are meant.

    Args:
        arguments: Files; folders, which stand for all images in them, at any depth; or patterns such as "a/*.jpg" and
            "a/**/*.png", which stand for what they match.
    """
    files: dict[Path, None] = {}
    faults: dict[str, str] = {}
    for argument in map(str, arguments):
        whole = Path(argument)
        matches = [whole] if whole.exists() or not glob.has_magic(argument) else _matches(argument)
        images = [file for path in matches for file in (_images_in(path) if path.is_dir() else [path])]
        if not images:
            faults[argument] = "holds no image" if whole.is_dir() else "matches no image"
        for file in images:
            if file.exists():
                files[file] = None
            else:
                faults[argument] = "does not exist"
    return Listing(tuple(files), faults)


def picture_reader(configuration: Configuration) -> Callable[[Path], Tensor]:
    """Return what reads an image file as uint8 (channels, size, size), just as the test set of a folder is read.

    It raises a ValueError that names a file which is damaged or no image.

    Args:
        configuration: Its `mean` says the channels, 1 (grey) or 3.

    Raises:
        ValueError: Other channels.
    """
    channels = len(configuration.mean)
    if channels not in PICTURE_MODES:
        raise ValueError(f"images have {channels} channels; image files are read as 1 or 3")
    transform = configuration.crop.transform()

    def read(path: Path) -> Tensor:
        try:
            image = rgb(open_image(path))
            return transform(image if channels == 3 else image.convert(PICTURE_MODES[channels]))
        except Exception as error:  # pillow raises many types, depending on the format
            raise ValueError(f"{path} is no image that can be read ({error!r})") from error

    return read


def _matches(pattern: str) -> list[Path]:
    return sorted(Path(name) for name in glob.glob(pattern, recursive=True))


def _images_in(folder: Path) -> list[Path]:
    endings = vision("torchvision.datasets").folder.IMG_EXTENSIONS
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
