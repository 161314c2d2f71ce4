"""Networks by name: this project's own, torchvision's as "torchvision/NAME", timm's as "timm/NAME"."""

import difflib
import re
from collections.abc import Callable
from typing import Any

from torch import nn

from spequant.extras import needs
from spequant.models import mobilenet_v2_cifar, resnet_cifar, resnet_imagenet, vgg_cifar
from spequant.models.answering import TRANSFORMERS
from spequant.models.weights import load_state
from spequant.names import called_with, imported
from spequant.networks import copied

TORCHVISION, TIMM = "torchvision/", "timm/"
OWN: dict[str, Callable[..., nn.Module]] = {
    "resnet8": resnet_cifar.resnet8,
    "resnet20": resnet_cifar.resnet20,
    "resnet32": resnet_cifar.resnet32,
    "resnet44": resnet_cifar.resnet44,
    "resnet56": resnet_cifar.resnet56,
    "vgg16_bn": vgg_cifar.vgg16_bn,
    "mobilenet_v2": mobilenet_v2_cifar.mobilenet_v2,
    "resnet18": resnet_imagenet.resnet18,
    "resnet34": resnet_imagenet.resnet34,
}
MARKED = ("resnet18", "resnet34")
"""Of `OWN`, torchvision's networks with marked additions: torchvision's weights are theirs."""

WITH_HELPERS = ("googlenet", "inception_v3")
HELPERS = ("aux1.", "aux2.", "AuxLogits.")
"""Heads of theirs that run in training alone, from half-way up; left out: they have no activations to calibrate on."""

OLD = re.compile(r"^(features\.denseblock\d+\.denselayer\d+\.(?:norm|conv))\.([12]\.)")
"""Names in DenseNet's published weights, of a torch whose modules could have a dot in theirs: norm.1 is norm1."""


def check_network(name: str) -> None:
    """ValueError: `name` is none of `OWN` and of no library; what a library has, it says when the network is made."""
    if ":" in name:
        imported(name)
    elif name not in OWN and not name.startswith((TORCHVISION, TIMM, TRANSFORMERS)):
        near = difflib.get_close_matches(name, OWN)
        raise ValueError(
            f"network.name is {name!r}; expected {', '.join(OWN)}, {TORCHVISION}NAME, {TIMM}NAME or {TRANSFORMERS}NAME"
            + (f" (near to it: {', '.join(near)})" if near else "")
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
    """The float network of that name, or of a class or function of the user's, package.module:Object or file.py:Object,
    which is called with those of classes (or num_classes), in_channels and size that it names.

    size: height and width of its images, for networks that are made for one size; None: theirs.
    pretrained: the library's published weights, fetched or from its cache; else random ones.
    new_head: with `pretrained`, a random last layer for `classes` in place of the published one.

    ValueError: an unknown name, with near ones; weights that are not to be had, or for another number of classes.
    ModuleNotFoundError: the extra `vision` is not installed.
    """
    check_network(name)
    if ":" in name:
        return _imported(name, classes, in_channels, size, pretrained)
    if name.startswith(TIMM):
        return _timm(name.removeprefix(TIMM), classes, in_channels, size, pretrained, new_head)
    if name in OWN:
        network = OWN[name](classes=classes, in_channels=in_channels)
        library_name = name if name in MARKED else None
    else:
        library_name = name.removeprefix(TORCHVISION)
        network = _torchvision(library_name, classes, in_channels, size)
    if pretrained:
        if library_name is None:
            raise ValueError(f"network.pretrained is True, but {name} has no published weights; give network.weights")
        published: Any = needs("torchvision.models", "vision").get_model_weights(library_name).DEFAULT
        found = len(published.meta["categories"])
        if found != classes and not new_head:
            raise _other_head(f"torchvision's {published}", found, classes)
        state = published.get_state_dict(progress=False, check_hash=True)
        state = {OLD.sub(r"\1\2", n): t for n, t in state.items() if not n.startswith(HELPERS)}
        load_state(network, state, f"torchvision's {published}", new_head=new_head)
    return network


def _imported(name: str, classes: int, in_channels: int, size: int | None, pretrained: bool) -> nn.Module:
    """A class or function of the user's, or a network itself."""
    if pretrained:
        raise ValueError(f"network.pretrained is True, but {name} has no published weights; give network.weights")
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
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(TORCHVISION, name, known)
    if in_channels != 3:
        raise ValueError(f"network.name is {TORCHVISION + name!r}, for 3 channels; the data have {in_channels}")
    own: dict[str, Any] = {"init_weights": True, "aux_logits": False} if name in WITH_HELPERS else {}
    if size is not None and name.startswith("vit_"):
        own["image_size"] = size
    return models.get_model(name, weights=None, num_classes=classes, **own)


def _timm(name: str, classes: int, in_channels: int, size: int | None, pretrained: bool, new_head: bool) -> nn.Module:
    timm = needs("timm", "vision")
    if not timm.is_model(name):
        raise _unknown(TIMM, name, timm.list_models())
    published = timm.get_pretrained_cfg(name) if timm.models.is_model_pretrained(name.split(".")[0]) else None
    own: dict[str, Any] = {}
    if published is not None:
        if pretrained and published.num_classes != classes and not new_head:
            raise _other_head(f"timm's {name}", published.num_classes, classes)
        if size is not None and published.fixed_input_size and size != published.input_size[-1]:
            own["img_size"] = size
    return timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=in_channels, **own)


def _other_head(what: str, found: int, classes: int) -> ValueError:
    return ValueError(
        f"{what} has {found} classes, the data {classes}; give --network.new-head for a last layer of its own"
    )


def _unknown(library: str, name: str, known: list[str]) -> ValueError:
    near = difflib.get_close_matches(name, known)
    return ValueError(
        f"network.name is {library + name!r}, which {library[:-1]} does not have; "
        + (f"near to it: {', '.join(library + n for n in near)}" if near else f"it has {len(known)} networks")
    )
