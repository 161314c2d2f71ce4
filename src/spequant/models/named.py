"""Networks by name: those of this project, torchvision's as "torchvision/NAME", timm's as "timm/NAME"."""

import difflib
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from spequant.extras import needs
from spequant.models import mobilenet_v1_cifar, mobilenet_v2_cifar, resnet_cifar, resnet_imagenet, vgg_cifar
from spequant.models.answering import TRANSFORMERS
from spequant.models.weights import load_state
from spequant.names import called_with, imported
from spequant.networks import copied

TORCHVISION, TIMM = "torchvision/", "timm/"
BUILDERS: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet_cifar.resnet8,
    "resnet20": resnet_cifar.resnet20,
    "resnet32": resnet_cifar.resnet32,
    "resnet44": resnet_cifar.resnet44,
    "resnet56": resnet_cifar.resnet56,
    "vgg16_bn": vgg_cifar.vgg16_bn,
    "mobilenet_v1_025": mobilenet_v1_cifar.mobilenet_v1_025,
    "mobilenet_v2": mobilenet_v2_cifar.mobilenet_v2,
    "resnet18": resnet_imagenet.resnet18,
    "resnet34": resnet_imagenet.resnet34,
}
"""{name: function that makes the network} of this project's networks."""

TORCHVISION_TWINS = ("resnet18", "resnet34")
"""Networks of `BUILDERS` that take the weights of torchvision's network of the same name."""

WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
AUXILIARY_HEADS = ("aux1.", "aux2.", "AuxLogits.")
"""Heads in the middle of these networks. They only run in training, so that calibration has no activations for them;
the networks are made without them."""

OLD_DENSENET_NAMES = re.compile(r"^(features\.denseblock\d+\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names in DenseNet's published weights. They are from a torch that allowed dots in names of modules: norm.1 is norm1
today."""


def check_network(name: str) -> None:
    """Check that `name` is one of `BUILDERS`, has the prefix of a library, or is a reference to the user's own object.

    Whether the library has the network is checked when the network is made.

    Raises:
        ValueError: it is neither; the message lists near names.
    """
    if ":" in name:
        imported(name)
    elif name not in BUILDERS and not name.startswith((TORCHVISION, TIMM, TRANSFORMERS)):
        near = difflib.get_close_matches(name, BUILDERS)
        names = f"{', '.join(BUILDERS)}, {TORCHVISION}NAME, {TIMM}NAME or {TRANSFORMERS}NAME"
        raise ValueError(
            f"network.name is {name!r}; expected {names}" + (f" (near to it: {', '.join(near)})" if near else "")
        )


def make_network(
    name: str,
    *,
    classes: int,
    in_channels: int = 3,
    size: int | None = None,
    pretrained: bool = False,
    new_head: bool = False,
) -> nn.Module:
    """Return the float network of that name, or of a class or function of the user's own.

    Args:
        name: one of `BUILDERS`, torchvision/NAME, timm/NAME, or a class or function, package.module:Object or
            file.py:Object, that is called with those of classes (or num_classes), in_channels and size that it names.
        classes: number of logits.
        in_channels: channels of the images.
        size: height and width of the images, for networks that are made for one size; None means their usual size.
        pretrained: True loads the weights that the library publishes, by a download or from its cache; False gives
            random weights.
        new_head: with `pretrained`, a random last layer for `classes` replaces the published one.

    Raises:
        ValueError: an unknown name (the message lists near ones), a network that cannot take these images, or no
            published weights for this number of classes.
        OSError: published weights could not be fetched.
        ModuleNotFoundError: the extra `vision` is not installed.
    """
    check_network(name)
    if ":" in name:
        return _imported(name, classes, in_channels, size, pretrained)
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), classes, in_channels, size, pretrained, new_head)
    if name in BUILDERS:
        network = BUILDERS[name](classes=classes, in_channels=in_channels)
        library_name = name if name in TORCHVISION_TWINS else None
    else:
        library_name = name.removeprefix(TORCHVISION)
        network = _torchvision(library_name, classes, in_channels, size)
    if pretrained:
        if library_name is None:
            raise _unpublished(name)
        published: Any = needs("torchvision.models", "vision").get_model_weights(library_name).DEFAULT
        published_classes = len(published.meta["categories"])
        if published_classes != classes and not new_head:
            raise _other_head(f"torchvision's {published}", published_classes, classes)
        try:
            state = published.get_state_dict(progress=False, check_hash=True)
        except OSError as error:
            raise OSError(
                f"network.pretrained is True, but {published.url} could not be fetched ({error}). Fetch it elsewhere "
                "and give --network.weights FILE, or --network.no-pretrained for random weights"
            ) from error
        state = {OLD_DENSENET_NAMES.sub(r"\1\2", n): t for n, t in state.items() if not n.startswith(AUXILIARY_HEADS)}
        load_state(network, state, f"torchvision's {published}", new_head=new_head)
    return network


def _imported(name: str, classes: int, in_channels: int, size: int | None, pretrained: bool) -> nn.Module:
    """A class or function of the user's, or a network itself."""
    if pretrained:
        raise _unpublished(name)
    make = imported(name)
    if isinstance(make, nn.Module):
        return copied(make)
    sizes = {"classes": classes, "num_classes": classes, "in_channels": in_channels, "size": size}
    network = called_with(make, sizes, f"network {name}")
    if not isinstance(network, nn.Module):
        raise ValueError(f"network.name is {name!r}, which gives {type(network).__name__}; expected an nn.Module")
    return network


def _torchvision(name: str, classes: int, in_channels: int, size: int | None) -> nn.Module:
    models = needs("torchvision.models", "vision")
    names = models.list_models(module=models)
    if name not in names:
        raise _unknown(TORCHVISION, name, names)
    if in_channels != 3:
        raise ValueError(f"network.name is {TORCHVISION + name!r}, for 3 channels; the data have {in_channels}")
    options: dict[str, Any] = {"init_weights": True, "aux_logits": False} if name in WITH_AUXILIARY_HEADS else {}
    if size is not None and name.startswith("vit_"):
        options["image_size"] = size
    return models.get_model(name, weights=None, num_classes=classes, **options)


def _timm(name: str, classes: int, in_channels: int, size: int | None, pretrained: bool, new_head: bool) -> nn.Module:
    timm = needs("timm", "vision")
    if not timm.is_model(name):
        raise _unknown(TIMM, name, timm.list_models())
    published = timm.get_pretrained_cfg(name) if timm.models.is_model_pretrained(name.split(".")[0]) else None
    options: dict[str, Any] = {}
    if published is not None:
        if pretrained and published.num_classes != classes and not new_head:
            raise _other_head(f"timm's {name}", published.num_classes, classes)
        if size is not None and published.fixed_input_size and size != published.input_size[-1]:
            options["img_size"] = size
    return timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=in_channels, **options)


def _unpublished(name: str) -> ValueError:
    return ValueError(
        f"network.pretrained is True, but {name} has no published weights; give --network.no-pretrained for random "
        "weights, with --network.weights FILE for weights of yours"
    )


def _other_head(what: str, published_classes: int, classes: int) -> ValueError:
    return ValueError(
        f"{what} has {published_classes} classes, the data {classes}; give --network.new-head for a new last layer"
    )


def _unknown(library: str, name: str, names: list[str]) -> ValueError:
    near = difflib.get_close_matches(name, names)
    return ValueError(
        f"network.name is {library + name!r}, which {library[:-1]} does not have; "
        + (f"near to it: {', '.join(library + n for n in near)}" if near else f"it has {len(names)} networks")
    )
