"""What a network expects of its images: size, crop, mean and deviation, as timm and torchvision keep them."""

from dataclasses import dataclass, replace

from spequant.data.image_files import IMAGENET_MEAN, IMAGENET_STD
from spequant.data.vision import vision

TIMM, TORCHVISION = "timm/", "torchvision/"
HALVES = ("torchvision/googlenet", "torchvision/inception_v3")
"""Networks whose published weights want images from -1 to 1: with them torchvision puts that into the network
(`transform_input`); here it is the data's mean and deviation, which files of any kind hold."""


@dataclass(frozen=True)
class Configuration:
    """mean, std: of each channel, of images scaled to [0, 1]; crop_pct: share of the shorter side that the middle crop
    takes; size: its side, pixels; crop_mode: timm's. The defaults are those that most ImageNet networks were trained
    with."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_pct: float = 0.875
    interpolation: str = "bilinear"
    size: int = 224
    crop_mode: str = "center"


def data_configuration(network: str) -> Configuration:
    """Of the recipe's network of that name: of "timm/NAME" timm's, of "torchvision/NAME" that of its default weights,
    but for the mean and deviation of `HALVES`; of any other ImageNet's usual one.

    ValueError: timm, or torchvision, has no network NAME.
    """
    if network.startswith(TORCHVISION):
        return _torchvision(network)
    if not network.startswith(TIMM):
        return Configuration()
    models, name = vision("timm").models, network.removeprefix(TIMM)
    if not models.is_model(name):
        raise ValueError(f"network.name is {network!r}, and timm has no {name!r}; timm.list_models() lists what it has")
    try:
        known = models.get_pretrained_cfg(name)
    except RuntimeError as error:
        raise ValueError(f"network.name is {network!r}: {error}; timm.list_pretrained() lists its weights") from error
    found = vision("timm.data").resolve_data_config(
        pretrained_cfg=known.to_dict() if known else {"mean": IMAGENET_MEAN}
    )
    return Configuration(
        tuple(found["mean"]),
        tuple(found["std"]),
        found["crop_pct"],
        found["interpolation"],
        found["input_size"][-1],
        found["crop_mode"],
    )


def _torchvision(network: str) -> Configuration:
    try:
        weights = vision("torchvision.models").get_model_weights(network.removeprefix(TORCHVISION))
    except ValueError as error:
        raise ValueError(f"network.name is {network!r}, and torchvision has no such network") from error
    found = weights.DEFAULT.transforms()
    (size,), (whole,) = found.crop_size, found.resize_size
    own = Configuration(tuple(found.mean), tuple(found.std), size / whole, found.interpolation.value, size)
    return replace(own, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)) if network in HALVES else own
