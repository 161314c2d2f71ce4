"""From a recipe's strings to objects: the only place where that happens."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn

from spequant import models, quantizers
from spequant.app.recipes.check import check_data
from spequant.app.recipes.folder import RECIPE, weight_file
from spequant.app.recipes.overrides import parse_overrides
from spequant.app.recipes.schema import (
    FOLDER,
    SQUAD,
    TORCHVISION,
    Data,
    Network,
    Quantization,
    Recipe,
    from_json,
)
from spequant.calibration.ranges import calibrate
from spequant.data import (
    Augment,
    Configuration,
    ImageFiles,
    ImageSet,
    RandomCrop,
    data_configuration,
    hold_out,
    load_cifar10,
    load_cifar100,
    load_digits,
    load_fashion_mnist,
    load_folder,
    load_torchvision,
)
from spequant.files import make_folder
from spequant.preparation.placement import prepare, unprepare
from spequant.processes import world
from spequant.quantizers import least_squares, percentile, set_ewgs
from spequant.train import samples

Loader = Callable[[Path | None, bool], tuple[ImageSet, ImageSet]]
"""(root, download) -> (train, test)"""


def device_of(recipe: Recipe) -> torch.device:
    """Where a single process runs it."""
    return device_named(recipe.train.device)


def device_named(name: str) -> torch.device:
    """`name`, or for "auto" the GPU where there is one."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def _below_root(load: Callable[[Path, bool], tuple[ImageSet, ImageSet]], title: str) -> Loader:
    """`load` for a set that is looked for below data.root alone."""

    def checked(root: Path | None, download: bool) -> tuple[ImageSet, ImageSet]:
        if root is None:
            raise ValueError(
                f"data.root is not set; expected the folder of {title}: give --data.root DIR (--root DIR for what is "
                "trained) or set SPEQUANT_DATA (--data.download fetches the set into it where there is a network)"
            )
        return load(root, download)

    return checked


LOADERS: dict[str, Loader] = {
    "digits": lambda root, download: load_digits(),
    "cifar10": _below_root(load_cifar10, "CIFAR-10"),
    "cifar100": _below_root(load_cifar100, "CIFAR-100"),
    "fashion-mnist": load_fashion_mnist,
}


@contextmanager
def _alone(root: str | Path) -> Iterator[None]:
    """Inside, no other run downloads into `root`; one that cannot be written to takes no downloads."""
    make_folder(Path(root))
    with FileLock(Path(root) / ".download.lock") if os.access(root, os.W_OK) else nullcontext():
        yield


def build_data(choice: Data, device: torch.device, network: str = "") -> tuple[ImageSet, ImageSet | None, ImageSet]:
    """(train, held out or None, test), on `device`; of files, what is decoded of them.

    network: its name, whose own size, crop, mean and deviation files are read with where `choice` leaves them open.
    """
    check_data(choice)
    if choice.name == SQUAD:
        raise ValueError("data.name is 'squad', questions; expected images here")
    named = choice.root or os.environ.get("SPEQUANT_DATA")
    root = Path(named) if named else None
    with _alone(root) if root and choice.download else nullcontext():
        if choice.name in LOADERS:
            train, test = LOADERS[choice.name](root, choice.download)
        else:
            train, test = _load_files(choice, root, data_configuration(network))
    if choice.images is None:
        rest, held = hold_out(train, choice.held_out)
    else:
        if not 1 <= choice.images <= len(train):
            raise ValueError(f"data.images is {choice.images}; expected 1 to {len(train)}")
        if choice.images + choice.held_out > len(train):
            raise ValueError(
                f"data.images is {choice.images} and data.held_out {choice.held_out}; expected {len(train)} together "
                "at most, the training images that there are"
            )
        rest, behind = train.part(slice(0, choice.images)), train.part(slice(choice.images, None))
        held = behind if choice.held_out == len(behind) else hold_out(behind, choice.held_out)[1]
        held = held if choice.held_out else None
    return rest.to(device), held.to(device) if held is not None else None, test.to(device)


def _load_files(choice: Data, root: Path | None, about: Configuration) -> tuple[ImageSet, ImageSet]:
    given = {"size": choice.size, "crop_pct": choice.crop_pct, "interpolation": choice.interpolation}
    about = replace(about, **{name: value for name, value in given.items() if value is not None})
    workers, check = _workers() if choice.workers is None else choice.workers, choice.check_images
    if choice.name == FOLDER:
        if root is None:
            raise ValueError(
                "data.root is not set; expected the folder that holds train and val: give --data.root DIR (--root DIR "
                "for what is trained)"
            )
        return load_folder(root, about, workers=workers, check=check)
    name = choice.name.removeprefix(TORCHVISION)
    return load_torchvision(name, root, about, download=choice.download, workers=workers, check=check)


def _workers() -> int:
    """All CPUs but one, shared by the processes, 8 at most."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, (cpus - 1) // world())


def build_augment(choice: Data, data: ImageSet) -> Augment | RandomCrop | None:
    """Of the training images: `RandomCrop` where they are files."""
    if not choice.augment:
        return None
    if isinstance(data.images, ImageFiles):
        return RandomCrop(choice.crop_scale, choice.color_jitter, choice.auto_augment, data.mean)
    return Augment()


def build_network(choice: Network, data: ImageSet) -> nn.Module:
    """The float network for `data`, with its weights loaded where the recipe names some; of a low-bit run those that
    its quantizers read."""
    shape = data.images.shape
    model = models.make_network(
        choice.name,
        classes=data.classes,
        in_channels=shape[1],
        size=shape[-1],
        pretrained=choice.pretrained,
        new_head=choice.new_head,
    )
    if choice.weights is not None:
        low_bit = _low_bit(choice.weights)
        whole = model if low_bit is None else build_quantized(model, low_bit)
        _load_weights(whole, weight_file(choice.weights), data.classes, choice.new_head)
        model = model if low_bit is None else unprepare(whole)
    return model


def _low_bit(weights: Path) -> Quantization | None:
    """How the run in the folder `weights` was quantized; None: a float one, or a file."""
    if not (weights / RECIPE).is_file():
        return None
    recipe = from_json((weights / RECIPE).read_text())
    return recipe.quant if recipe.quantized else None


def _load_weights(model: nn.Module, path: Path, classes: int, new_head: bool) -> None:
    try:
        models.load_weights(model, path, new_head=new_head)
    except ValueError as error:
        if "size mismatch" in str(error):
            raise ValueError(
                f"{error}. The network is made for the data's {classes} classes; expected network.weights of one for "
                "as many, or --network.new-head for a last layer of its own"
            ) from error
        raise


def build_quantized(model: nn.Module, choice: Quantization) -> nn.Module:
    """`model` prepared as the recipe says, not calibrated; the float model itself where both bits are None."""
    if choice.weight_bits is None and choice.act_bits is None:
        return model
    weight, act = quantizers.by_name[choice.weight], quantizers.by_name[choice.act]
    settings: dict[str, Any] = {"decay": choice.act_decay} if choice.act == "pact" else {}
    # The penalty is for clips of few levels: at 8 bits a wide range costs nothing, and pulled in it clips the stream.
    quantized = prepare(
        model,
        weight=None if choice.weight_bits is None else weight(choice.weight_bits),
        act=None if choice.act_bits is None else act(choice.act_bits, **settings),
        depthwise=None if choice.depthwise is None else quantizers.by_name[choice.depthwise](choice.weight_bits),
        ends=(weight(None).at(choice.end_bits), act(choice.end_bits)),
        embeddings=weight(None).at(choice.embedding_bits),
        residual=None if choice.residual_bits is None else act(choice.residual_bits),
        products=None if choice.product_bits is None else act(choice.product_bits),
        overrides=parse_overrides(choice.overrides),
        per_channel=choice.per_channel,
    )
    if choice.ewgs:
        set_ewgs(quantized, choice.ewgs)
    return quantized


def calibrated(model: nn.Module, choice: Quantization, batches: list) -> nn.Module:
    """`build_quantized`, and its ranges from `batches`, the very same ones in every process."""
    quantized = build_quantized(model, choice)
    if quantized is not model:
        count = min(1024, sum(map(samples, batches))) * world()  # fewer: all that there are
        rule = least_squares if choice.percentile is None else percentile(choice.percentile)
        calibrate(quantized, batches, rule=rule, samples=count)
    return quantized


def with_seed(recipe: Recipe, seed: int) -> Recipe:
    return replace(recipe, train=replace(recipe.train, seed=seed))
