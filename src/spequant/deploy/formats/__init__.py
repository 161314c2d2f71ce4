"""The formats of exported files; `FORMATS` is the registry. Who adds one adds a line here."""

from pathlib import Path

from spequant.deploy.formats.c import C
from spequant.deploy.formats.format import Draft, Format, ProgramFormat
from spequant.deploy.formats.mixed import MixedFormat
from spequant.deploy.formats.onnx import Onnx
from spequant.deploy.formats.openvino import OpenVino
from spequant.deploy.formats.packed import Packed
from spequant.deploy.formats.qonnx import Qonnx
from spequant.deploy.formats.tflite import Tflite, TfliteInt4

FORMATS: dict[str, Format] = {
    form.name: form for form in (Packed(), Onnx(), MixedFormat(), OpenVino(), Qonnx(), Tflite(), TfliteInt4(), C())
}

__all__ = [
    "FORMATS",
    "Draft",
    "Format",
    "ProgramFormat",
    "format_named",
    "format_of_file",
    "format_to_write",
    "is_folder_of_format",
]


def format_named(name: str) -> Format:
    """ValueError: none of that name."""
    if name not in FORMATS:
        raise ValueError(f"format is {name!r}; expected one of {', '.join(FORMATS)}")
    return FORMATS[name]


def format_to_write(path: Path, name: str | None) -> Format:
    """The format that a file at `path` is to have. name: None: that of its ending, of several the longest.

    ValueError: an ending of no format or of two, or another than that of the format that is named.
    """
    if name is not None:
        form = format_named(name)
        check_ending(form, path)
        return form
    endings = {n: len(f.suffix) for n, f in FORMATS.items() if path.name.lower().endswith(f.suffix)}
    longest = [n for n, length in endings.items() if length == max(endings.values())]
    if len(longest) != 1:
        suffixes = ", ".join(f"{f.suffix} ({n})" for n, f in FORMATS.items())
        what = "may be " + " or ".join(longest) if longest else "has an ending of no format"
        raise ValueError(f"path is {str(path)!r}, which {what}; give format=, or one of the endings {suffixes}")
    return FORMATS[longest[0]]


def check_ending(form: Format, path: Path, argument: str = "path") -> None:
    """ValueError: a name by which a file of `form` would not be known again."""
    others = sorted({f.extension for f in FORMATS.values() if f.extension})
    ending = path.suffix.lower()
    if ending != form.extension if form.extension else ending in others:
        expected = f"one that ends in {form.extension}" if form.extension else f"any ending but {', '.join(others)}"
        raise ValueError(f"{argument} is {str(path)!r}; for --to {form.name} expected {expected}")


def format_of_file(path: Path) -> Format:
    """The format of the file that is there. FileNotFoundError. ValueError: damaged, or of no format here."""
    if is_folder_of_format(path):
        return next(f for f in FORMATS.values() if f.folder and f.recognised(path))
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected an exported file")
    ending = path.suffix.lower()
    of_ending = [f for f in FORMATS.values() if f.extension == ending] or [
        f for f in FORMATS.values() if not f.extension and not f.folder
    ]
    for form in of_ending:
        if len(of_ending) == 1 or form.recognised(path):
            return form
    raise ValueError(
        f"{path} is of none of the formats {', '.join(f.name for f in of_ending)}; install a newer version"
    )


def is_folder_of_format(path: Path) -> bool:
    """Whether `path` is a folder that a format wrote."""
    return path.is_dir() and any(f.folder and f.recognised(path) for f in FORMATS.values())
