"""Size, crop, mean and deviation of the images that a network was trained with, from timm and torchvision."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from spequant.data.image_files import IMAGENET_MEAN, IMAGENET_STD, Crop
from spequant.data.vision import vision

TIMM, TORCHVISION = "timm/", "torchvision/"
CROP_MODES = ("center", "squash", "border")
UNIT_RANGE = ("torchvision/googlenet", "torchvision/inception_v3")
"""Networks whose published weights need images from -1 to 1. torchvision scales the images in the network
(`transform_input`). Here the mean and deviation of the data do it, because every exported file contains them."""


@dataclass(frozen=True)
class Configuration:
    """How images are scaled, cropped and normalised. The defaults are those of most networks for ImageNet.

    Attributes:
        mean, std: Per channel, one of grey images or three, of images scaled to [0, 1]; std above 0.
        crop_pct: Share of the image's shorter side that the center crop takes in evaluation, above 0, at most 1.
        interpolation: "bilinear", "bicubic", "nearest", "box", "hamming" or "lanczos".
        size: Side of the crop in pixels.
        crop_mode: timm's: "center", "squash" or "border".
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    size: int = 224
    crop_mode: str = "center"

    @property
    def crop(self) -> Crop:
        """The crop in evaluation."""
        return Crop(self.size, self.crop_pct, self.interpolation, self.crop_mode)


def configuration_from(content: Any) -> Configuration:
    """Return the configuration of which `dataclasses.asdict` made `content`, as JSON keeps it.

    Raises:
        ValueError: `content` has other fields, or a value is out of range.
    """
    names = [field.name for field in fields(Configuration)]
    if not isinstance(content, Mapping) or set(content) - set(names):
        raise ValueError(f"images is {content!r}; expected an object with {', '.join(names)}")
    values: Any = {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}
    configuration = Configuration(**values)
    mean, std = configuration.mean, configuration.std
    numbers = all(isinstance(v, tuple) and all(type(x) in (int, float) for x in v) for v in (mean, std))
    if not numbers or len(mean) != len(std) or not all(map(math.isfinite, (*mean, *std))) or min(std, default=0) <= 0:
        raise ValueError(f"mean is {mean!r} and std {std!r}; expected one number per channel each, std above 0")
    if type(configuration.size) is not int or not isinstance(configuration.crop_pct, int | float):
        raise ValueError(
            f"size is {configuration.size!r} and crop_pct {configuration.crop_pct!r}; expected whole pixels and a share"
        )
    if configuration.crop_mode not in CROP_MODES:
        raise ValueError(f"crop_mode is {configuration.crop_mode!r}; expected {', '.join(CROP_MODES)}")
    _ = configuration.crop  # it checks itself
    return configuration


def data_configuration(network: str) -> Configuration:
    """Return the data configuration of a network.

    Args:
        network: Name in a recipe. For "timm/NAME" the configuration is timm's, and for "torchvision/NAME" that of the
            default weights, except the mean and deviation of `UNIT_RANGE`. Other networks get the default.

    Raises:
        ValueError: timm or torchvision has no network NAME.
        ModuleNotFoundError: timm or torchvision (extra `vision`) is not installed.
    """
    if network.startswith(TORCHVISION):
        return _torchvision(network)
    if not network.startswith(TIMM):
        return Configuration()
    models, name = vision("timm").models, network.removeprefix(TIMM)
    if not models.is_model(name):
        raise ValueError(f"network.name is {network!r}, and timm has no {name!r}; timm.list_models() lists what it has")
    try:
        pretrained = models.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"network.name is {network!r}: {error}; timm.list_pretrained() lists its weights") from error
    config = vision("timm.data").resolve_data_config(
        pretrained_cfg=pretrained.to_dict() if pretrained else {"mean": IMAGENET_MEAN}
    )
    return Configuration(
        tuple(config["mean"]),
        tuple(config["std"]),
        config["crop_pct"],
        config["interpolation"],
        config["input_size"][-1],
        config["crop_mode"],
    )


def _torchvision(network: str) -> Configuration:
    try:
        weights = vision("torchvision.models").get_model_weights(network.removeprefix(TORCHVISION))
    except ValueError as error:
        raise ValueError(f"network.name is {network!r}, and torchvision has no such network") from error
    preset = weights.DEFAULT.transforms()
    (size,), (resized,) = preset.crop_size, preset.resize_size
    config = Configuration(tuple(preset.mean), tuple(preset.std), size / resized, preset.interpolation.value, size)
    return replace(config, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)) if network in UNIT_RANGE else config
