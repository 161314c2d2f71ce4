"""A run's folder or an exported file, opened: what it is, the network or program in it, and its test set."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from spequant import models
from spequant.data import ImageSet
from spequant.export import (
    Program,
    check_packed,
    load_packed,
    packed_about,
    read_onnx,
    read_openvino,
)
from spequant.export.onnx_file import program_in
from spequant.recipes.assembly import channels_last
from spequant.recipes.build import build_data, build_network, build_quantized, device_of
from spequant.recipes.folder import RECIPE, STATE
from spequant.recipes.schema import Network, Recipe, from_json, to_json

Kind = Literal["run", "packed", "onnx", "mixed", "qonnx", "openvino"]


@dataclass(frozen=True)
class Source:
    """What `open_source` found.

    shape: of an input, without the batch. act_bits: in use, of activations that are no ends or addends. model:
    prepared, in eval mode, of a run or a packed file. program: of an integer graph. preprocessing: (mean, std) where a
    graph takes uint8 images. batch: images that a graph takes at a time; None: any number. loaded: the test set, with
    which a run was opened.
    """

    path: Path
    kind: Kind
    recipe: Recipe
    shape: tuple[int, ...]
    act_bits: int | None
    model: nn.Module | None = None
    program: Program | None = None
    preprocessing: Any = None
    batch: int | None = None
    loaded: ImageSet | None = None

    def test_set(self, root: Path | None = None) -> ImageSet:
        """Its recipe's test set, on the CPU; root: in place of the recipe's."""
        return self.loaded if self.loaded is not None else _test_set(self.recipe, root, torch.device("cpu"))


def _test_set(recipe: Recipe, root: Path | None, device: torch.device) -> ImageSet:
    return build_data(recipe.data if root is None else replace(recipe.data, root=root), device, recipe.network.name)[2]


def open_source(path: Path, root: Path | None = None) -> Source:
    """FileNotFoundError. ValueError: damaged, of a newer version, or nothing that this project writes.

    root: of the data set, which a run's folder has to be read with.
    """
    if path.is_dir():
        recipe, model, test = load_run(path, root)
        shape, test = tuple(test.images.shape[1:]), test.to("cpu")
        return Source(path, "run", recipe, shape, recipe.quant.act_bits, model.cpu().eval(), loaded=test)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a run's folder or a file of `spequant export`")
    if path.suffix == ".xml":
        told = read_openvino(path)
        return _source(path, "openvino", told, preprocessing=told.get("preprocessing"))
    if path.suffix == ".onnx":
        model, head = read_onnx(path)
        if head["kind"] == "qonnx":
            return _source(path, "qonnx", head["about"])
        if head["kind"] == "mixed":
            parts = {key: head.get(key) for key in ("preprocessing", "batch")}
            return _source(path, "mixed", head["about"], **parts)
        program, preprocessing = program_in(path, model, head)
        return _source(path, "onnx", head["about"], program=program, preprocessing=preprocessing)
    told = packed_about(path)
    source, classes = _source(path, "packed", told), told["classes"]
    with torch.device("meta"):  # nothing is allocated before the file is known to fit
        check_packed(path, network_of(source.recipe, classes, source.shape))
    model = load_packed(path, network_of(source.recipe, classes, source.shape))
    return replace(source, model=channels_last(model, torch.device("cpu")))


def network_of(recipe: Recipe, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The recipe's float network for images of `shape` (channels, height, width), with random weights."""
    return models.make_network(recipe.network.name, classes=classes, in_channels=shape[0], size=shape[-1])


def about_run(recipe: Recipe, test: ImageSet) -> dict[str, Any]:
    """What an exported file says of where it is from; no paths of this machine."""
    data, network = replace(recipe.data, root=None), _random(recipe.network)
    told = replace(recipe, data=data, network=network, method=replace(recipe.method, teacher=None))
    return {"recipe": json.loads(to_json(told)), "classes": test.classes, "shape": list(test.images.shape[1:])}


def _random(network: Network) -> Network:
    """The same with weights that nothing is read or fetched for."""
    return replace(network, weights=None, pretrained=False, new_head=False)


def _source(path: Path, kind: Kind, told: dict[str, Any], **parts: Any) -> Source:
    try:
        recipe = from_json(json.dumps(told["recipe"]))
        models.check_network(recipe.network.name)
        shape, classes = told["shape"], told["classes"]
        if len(shape) != 3 or not all(type(n) is int and 0 < n < 2**16 for n in (*shape, classes)):
            raise ValueError(f"it has {classes!r} classes and inputs of shape {shape!r}")
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not say what network it holds ({error!r}); files made in Python are read with "
            "spequant.load_packed, or run in their engine"
        ) from error
    return Source(path, kind, recipe, tuple(shape), told.get("act_bits") or recipe.quant.act_bits, **parts)


def load_run(folder: Path, root: Path | None = None) -> tuple[Recipe, nn.Module, ImageSet]:
    """(recipe, trained model, test set) of a finished run. FileNotFoundError where `folder` holds none.

    root: of the data set, in place of the recipe's.
    """
    for name in (RECIPE, STATE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist; expected the folder of a finished run")
    try:
        recipe = from_json((folder / RECIPE).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / RECIPE}: {error}") from error
    device = device_of(recipe)
    test = _test_set(recipe, root, device)
    network = build_network(_random(recipe.network), test)
    model = build_quantized(network, recipe.quant)
    models.load_weights(model, folder / STATE)
    return recipe, channels_last(model, device), test
