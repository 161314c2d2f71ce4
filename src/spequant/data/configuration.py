"""Size, crop, mean and deviation of the images that a network was trained with, from timm and torchvision."""

from dataclasses import dataclass, replace

from spequant.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from spequant.data.vision import vision

TIMM, TORCHVISION = "timm/", "torchvision/"
UNIT_RANGE = ("torchvision/googlenet", "torchvision/inception_v3")
"""Networks whose published weights need images from -1 to 1. torchvision scales the images in the network
(`transform_input`). Here the mean and deviation of the data do it, because every exported file contains them."""


@dataclass(frozen=True)
class Configuration:
    """How images are scaled, cropped and normalised. The defaults are those of most networks for ImageNet.

    Attributes:
        mean, std: Per channel, of images scaled to [0, 1].
        crop_pct: Share of the image's shorter side that the center crop takes in evaluation, above 0, at most 1.
        interpolation: "bilinear", "bicubic", "nearest", "box", "hamming" or "lanczos".
        size: Side of the crop in pixels.
        crop_mode: timm's: "center", "squash" or "border".
    """

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    size: int = 224
    crop_mode: str = "center"


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
