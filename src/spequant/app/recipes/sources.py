"""A run's folder or an exported file, opened: what it is, the network or program in it, and its test set."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spequant import models
from spequant.app.recipes.folder import NETWORK, RECIPE, STATE
from spequant.app.recipes.images import channels_last
from spequant.app.recipes.questions import QuestionSet, dev_questions
from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.serial import from_json, to_json, without_paths
from spequant.app.recipes.training import device_named
from spequant.app.recipes.weights import build_network
from spequant.data import ImageSet, QuestionSettings
from spequant.deploy import (
    Program,
    check_packed,
    load_packed,
    packed_about,
    read_onnx,
    read_openvino,
)
from spequant.deploy.onnx_file import program_in

TestSet = ImageSet | QuestionSet
Kind = Literal["run", "packed", "onnx", "mixed", "qonnx", "openvino"]


@dataclass(frozen=True)
class Source:
    """What `open_source` found.

    shape: of an image, (channels, height, width); of questions (). act_bits: in use, of activations that are no ends
    or addends. model: prepared, in eval mode, of a run or a packed file. program: of an integer graph. preprocessing:
    (mean, std) where a graph takes uint8 images. batch: images that a graph takes at a time; None: any number.
    loaded: the test set, with which a run was opened.
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
    loaded: TestSet | None = None

    @property
    def of_questions(self) -> bool:
        return self.recipe.asks

    def test_set(self, root: Path | None = None) -> TestSet:
        """Its recipe's test set, on the CPU; root: in place of the recipe's."""
        if self.loaded is not None:
            return self.loaded
        beside = self.path.parent / NETWORK
        if self.of_questions and not beside.is_dir():
            try:
                models.load_tokenizer(self.recipe.network.name)
            except ValueError as error:
                raise ValueError(f"{error}. Or put the run's folder {NETWORK!r} beside {self.path}") from error
        return _test_set(self.recipe, root, torch.device("cpu"), beside if beside.is_dir() else None)


def _test_set(recipe: Recipe, root: Path | None, device: torch.device, tokenizer: Path | None = None) -> TestSet:
    """tokenizer: the folder of a run's; None: that of the recipe's network."""
    data: Any = recipe.data if root is None or not hasattr(recipe.data, "root") else replace(recipe.data, root=root)
    if not recipe.asks:
        return data.parts(recipe.network.name, device)[2]
    name = recipe.network.name if tokenizer is None else str(tokenizer)
    return dev_questions(data, models.load_tokenizer(name), models.configuration(name))


def open_source(path: Path, root: Path | None = None) -> Source:
    """FileNotFoundError. ValueError: damaged, of a newer version, or nothing that this project writes.

    root: of the data set, which a run's folder has to be read with.
    """
    if path.is_dir():
        recipe, model, test = load_run(path, root, "cpu")
        shape = tuple(test.images.shape[1:]) if isinstance(test, ImageSet) else ()
        return Source(path, "run", recipe, shape, recipe.quant.act_bits, model.eval(), loaded=test)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a run's folder or a file of `spequant export`")
    if path.suffix.lower() == ".xml":
        told = read_openvino(path)
        return _source(path, "openvino", told, preprocessing=told.get("preprocessing"))
    if path.suffix.lower() == ".onnx":
        model, head = read_onnx(path)
        if head["kind"] == "qonnx":
            return _source(path, "qonnx", head["about"])
        if head["kind"] == "mixed":
            parts = {key: head.get(key) for key in ("preprocessing", "batch")}
            return _source(path, "mixed", head["about"], **parts)
        program, preprocessing = program_in(path, model, head)
        return _source(path, "onnx", head["about"], program=program, preprocessing=preprocessing)
    told = packed_about(path)
    source = _source(path, "packed", told)
    with torch.device("meta"):  # nothing is allocated before the file is known to fit
        check_packed(path, _network_of(source.recipe, told))
    model = load_packed(path, _network_of(source.recipe, told))
    return replace(source, model=channels_last(model, torch.device("cpu")))


def _network_of(recipe: Recipe, told: dict[str, Any]) -> nn.Module:
    """The float network that `about_run` told of, with random weights."""
    if recipe.asks:
        return models.network_of(models.configuration_from(told["network"]))
    shape = told["shape"]
    return models.make_network(recipe.network.name, classes=told["classes"], in_channels=shape[0], size=shape[-1])


def about_run(recipe: Recipe, test: TestSet, model: nn.Module) -> dict[str, Any]:
    """What an exported file says of where it is from; no paths of this machine."""
    network = recipe.network.without_weights()
    own: dict[str, Any]
    if isinstance(test, ImageSet):
        own = {"classes": test.classes, "shape": list(test.images.shape[1:])}
    else:
        network = replace(network, name=_without_folders(network.name))
        own = {"network": models.configuration_dict(model)}
    told = without_paths(replace(recipe, network=network))
    return {"recipe": json.loads(to_json(told)), **own}


def _without_folders(name: str) -> str:
    """A network's name on the hub as it is; of one in a folder the folder's own name."""
    known = name.removeprefix(models.TRANSFORMERS)
    on_the_hub = known.count("/") <= 1 and not known.startswith((".", "/")) and not Path(known).is_dir()
    return models.TRANSFORMERS + (known if on_the_hub else Path(known).name)


def _source(path: Path, kind: Kind, told: dict[str, Any], **parts: Any) -> Source:
    try:
        recipe = from_json(json.dumps(told["recipe"]))
        models.check_network(recipe.network.name)
        if recipe.asks and not isinstance(told["network"], dict):
            raise ValueError(f"its network is {told['network']!r}")
        shape = () if recipe.asks else _shape(told)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} does not say what network it holds ({error!r}); files made in Python are read with "
            "spequant.load_packed, or run in their engine"
        ) from error
    return Source(path, kind, recipe, shape, told.get("act_bits") or recipe.quant.act_bits, **parts)


def example_of(source: Source, length: int | None = None) -> Tensor | dict[str, Tensor]:
    """An input of its network, one sample: an image, or a window of `length` tokens; None: data.max_length."""
    if not source.of_questions:
        return torch.zeros(1, *source.shape)
    data = source.recipe.data
    assert isinstance(data, QuestionSettings)
    tokens = torch.zeros(1, length or data.max_length, dtype=torch.int64)
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _shape(told: dict[str, Any]) -> tuple[int, ...]:
    shape, classes = told["shape"], told["classes"]
    if len(shape) != 3 or not all(type(n) is int and 0 < n < 2**16 for n in (*shape, classes)):
        raise ValueError(f"it has {classes!r} classes and inputs of shape {shape!r}")
    return tuple(shape)


def load_run(folder: Path, root: Path | None = None, device: str | None = None) -> tuple[Recipe, nn.Module, TestSet]:
    """(recipe, trained model, test set) of a finished run. FileNotFoundError where `folder` holds none.

    root: of the data set, in place of the recipe's. device: as train.device, in place of the recipe's.
    """
    for name in (RECIPE, STATE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder / name} does not exist; expected the folder of a finished run")
    try:
        recipe = from_json((folder / RECIPE).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / RECIPE}: {error}") from error
    place = device_named(device or recipe.train.device)
    test = _test_set(recipe, root, place, folder / NETWORK)
    if isinstance(test, ImageSet):
        network = build_network(recipe.network.without_weights(), test)
    else:
        network = models.network_of(models.configuration(str(folder / NETWORK)))
    model = recipe.quant.build(network)
    models.load_weights(model, folder / STATE)
    return recipe, channels_last(model, place), test
