"""Answers for single image files: the most probable classes of each, by a run or an exported file."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spequant.app.runs.evaluation import only_output
from spequant.app.runs.facts import configuration_of
from spequant.app.runs.sources import Source, open_source
from spequant.data import Configuration, configuration_from, list_images, picture_reader
from spequant.deploy.running import in_engine

IMAGES_AT_ONCE = 32
"""Images at a time, of any size: they are decoded one after the other."""
READING_OPTIONS = {"mean": "--mean", "std": "--std", "size": "--size", "crop_pct": "--crop-pct"}
"""{what has to be known to make an input of an image file: the option that says it}"""
NO_CLASSES = ("regression", "segmentation", "detection")
"""Tasks whose answer is no class of the whole image."""


@dataclass(frozen=True)
class Prediction:
    """What was answered for one image: the classes and their probabilities, the most probable first."""

    image: str
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]


@dataclass(frozen=True)
class Answers:
    """Answers for images, in their order.

    names: of all classes, None: nobody says. faults: {image: why it has no answer}.
    """

    answers: tuple[Prediction, ...]
    names: tuple[str, ...] | None
    faults: dict[str, str]


def predict_source(
    path: Path,
    images: Iterable[str | Path],
    *,
    top: int = 3,
    engine: str | None = None,
    network: str | None = None,
    **reading: Any,
) -> Answers:
    """Answer for image files with the most probable classes.

    Args:
        path: a run's folder or an exported file.
        images: files, folders of images, patterns such as "photos/*.jpg".
        top: how many classes per image, at most as many as there are.
        engine: torch or one of `engines.ENGINES`; None: the first of the file's format.
        network: as in `open_source`.
        reading: fields of a `Configuration`, in place of those that the file says; None: as the file says.

    Raises:
        FileNotFoundError: there is no such run or file.
        ValueError: the engine cannot run it, its answers are no classes, or it does not say how images become inputs.
    """
    if top < 1:
        raise ValueError(f"top is {top}; expected 1 or more")
    source = open_source(path, network=network)
    if source.of_questions or source.task in NO_CLASSES:
        task = "questions" if source.of_questions else source.task
        raise ValueError(f"{path} is of the task {task}; predict answers with classes of images")
    if source.model is None and not source.loaded.engines:
        raise source.network_needed("predict with it")
    configuration = configured(source, reading)
    answer = in_engine(source.loaded, engine, None, None, source.trained)
    listing = list_images(images)
    if not listing.files and not listing.faults:
        raise ValueError("no image is named; expected files, folders or patterns")
    answers, faults, called = [], dict(listing.faults), source.loaded.classes
    for names, pixels in _batches(listing.files, configuration, faults):
        inputs = pixels if source.loaded.preprocessing is not None else _normalised(pixels, configuration)
        try:
            logits = only_output(answer(inputs))
        except RuntimeError as error:
            raise ValueError(f"{path} does not run on images of shape {tuple(inputs.shape)}: {error}") from error
        shares = _probabilities(logits, source)
        if called is not None and len(called) != shares.shape[1]:
            raise ValueError(f"{path} names {len(called)} classes and gives {shares.shape[1]}; export it anew")
        values, classes = shares.sort(dim=1, descending=True, stable=True)
        rows = zip(names, classes[:, :top].tolist(), values[:, :top].tolist(), strict=True)
        answers += [Prediction(name, tuple(numbers), tuple(best)) for name, numbers, best in rows]
    return Answers(tuple(answers), called, faults)


def configured(source: Source, options: Mapping[str, Any]) -> Configuration:
    """Return how image files become inputs of a run or file: as `options` say, else as the file itself does.

    Raises:
        ValueError: neither says the size, the crop, the mean and the deviation; or they do not fit the inputs.
    """
    try:
        configuration = configuration_of(source.loaded.about)
    except ValueError as error:
        raise ValueError(f"{source.path}: {error}; export it anew") from error
    content: dict[str, Any] = {} if configuration is None else asdict(configuration)
    if source.shape is not None and len(source.shape) == 3 and source.shape[1] == source.shape[2]:
        content["size"] = source.shape[1]
    if source.loaded.preprocessing is not None:
        if options.get("mean") or options.get("std"):
            raise ValueError(f"mean or std is given; {source.path} takes uint8 images, and normalises them itself")
        content["mean"], content["std"] = map(tuple, source.loaded.preprocessing)
    content |= {name: value for name, value in options.items() if value is not None}
    missing = [option for name, option in READING_OPTIONS.items() if name not in content]
    if missing:
        raise ValueError(
            f"{source.path} does not say how an image file becomes its input, as files of older versions and those "
            f"made in Python: give {', '.join(missing)}, or export it anew from its run (in Python with "
            "about={'images': ...}, docs/images.md)"
        )
    channels = _channels(source) or len(content["mean"])
    for name in ("mean", "std"):
        if len(content[name]) not in (1, channels):
            raise ValueError(f"{name} is {content[name]!r}; expected one number, or {channels}, one per channel")
        content[name] = tuple(content[name]) * (channels if len(content[name]) == 1 else 1)
    return configuration_from(content)


def _channels(source: Source) -> int | None:
    """Return the channels of the images that a network reads, by the file or its first convolution; None: unknown."""
    if source.shape is not None:
        return source.shape[0]
    modules = () if source.model is None else source.model.modules()
    return next((m.in_channels for m in modules if isinstance(m, nn.Conv2d)), None)


def _batches(
    files: Iterable[Path], configuration: Configuration, faults: dict[str, str]
) -> Iterator[tuple[list[str], Tensor]]:
    """Yield names and uint8 images; those that cannot be read go to `faults`."""
    read = picture_reader(configuration)
    names, pixels = [], []
    for file in files:
        try:
            pixels.append(read(file))
            names.append(str(file))
        except ValueError as error:
            faults[str(file)] = str(error.__cause__ or error)
        if len(names) == IMAGES_AT_ONCE:
            yield names, torch.stack(pixels)
            names, pixels = [], []
    if names:
        yield names, torch.stack(pixels)


def _normalised(pixels: Tensor, configuration: Configuration) -> Tensor:
    mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (configuration.mean, configuration.std))
    return (pixels.float() / 255 - mean) / std


def _probabilities(logits: Any, source: Source) -> Tensor:
    """Return probabilities (images, classes): of one class each, or of each label for itself."""
    several = source.task == "multi-label"
    if not isinstance(logits, Tensor) or logits.dim() != 2 or (logits.shape[1] < 2 and not several):
        shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{source.path} gives {shape}; expected (images, classes), two classes or more")
    logits = logits.double()
    return logits.sigmoid() if several else logits.softmax(1)
