"""A run's folder or an exported file, opened: its network or program, and the samples that it is tested on.

A file that was exported from a run describes itself (`about_run`). For a file that was made in Python, the caller gives
the float network as "package.module:Object", and an .npz with inputs and labels.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from spequant import models
from spequant.app.recipes.recipe import Network, Recipe
from spequant.app.recipes.serial import from_json, to_json, without_paths
from spequant.app.recipes.training import device_named
from spequant.app.runs.facts import facts_of, read_facts, shape_of
from spequant.app.runs.folder import MODEL_FILE, NETWORK, RECIPE, run_first
from spequant.app.runs.images import channels_last
from spequant.app.runs.questions import QuestionSet, dev_questions
from spequant.app.runs.samples import EXPECTED, Samples, read_samples
from spequant.app.runs.weights import build_network
from spequant.data import ImageSet, QuestionSettings
from spequant.deploy import Loaded, Program, check_packed, load
from spequant.deploy.formats import is_folder_of_format
from spequant.deploy.zoo import file_of
from spequant.names import imported

RUN = "run"
"""The "format" of a run's folder."""


TestSet = ImageSet | QuestionSet | Samples


@dataclass(frozen=True)
class Source:
    """A run or a file that was opened."""

    loaded: Loaded
    """the file; or the network of a run, with the format `RUN`"""
    recipe: Recipe | None = None
    """None: the file was made in Python"""
    shape: tuple[int, ...] | None = None
    """of one sample, e.g. (channels, height, width); () for questions; None: not known"""
    act_bits: int | None = None
    """width in use of the activations that were trained at the recipe's act_bits"""
    tested: TestSet | None = None
    """the test set, if it was given or read already"""

    def __post_init__(self) -> None:
        if isinstance(self.tested, Samples):
            self.tested.check_names(self.loaded)

    @property
    def path(self) -> Path:
        return self.loaded.path

    @property
    def kind(self) -> str:
        return self.loaded.format

    @property
    def model(self) -> nn.Module | None:
        return self.loaded.model

    @property
    def program(self) -> Program | None:
        return self.loaded.program

    @property
    def name(self) -> str:
        """Name of the recipe, or of the file if it was made in Python."""
        return self.path.name if self.recipe is None else self.recipe.name

    @property
    def trained(self) -> int | None:
        """Bits of the activations whose width may be changed, as they were trained; None: the lowest of the file."""
        return None if self.recipe is None else self.recipe.quant.act_bits

    @property
    def task(self) -> str | None:
        """Name of the recipe's task; None: that of its data, or not known."""
        return None if self.recipe is None else self.recipe.task

    @property
    def of_questions(self) -> bool:
        return self.recipe is not None and self.recipe.asks

    def test_set(self, root: Path | None = None) -> TestSet:
        """Return the samples to test on, on the CPU: those that were given, or the recipe's test set.

        Args:
            root: the folder of the data set; None: the recipe's.

        Raises:
            ValueError: the file was made in Python, and no samples were given.
        """
        if self.tested is not None:
            return self.tested
        if self.recipe is None:
            raise ValueError(
                f"{self.path} does not say what it is tested on, as files that were made in Python; give --arrays "
                f"FILE.npz with the arrays {EXPECTED}"
            )
        folder = self.path.parent / NETWORK
        if self.of_questions and not folder.is_dir():
            try:
                models.load_tokenizer(self.recipe.network.name)
            except ValueError as error:
                raise ValueError(f"{error}. Or put the run's folder {NETWORK!r} next to {self.path}") from error
        return _test_set(self.recipe, root, torch.device("cpu"), folder if folder.is_dir() else None)

    def network_needed(self, what: str) -> ValueError:
        """Return the error for work (`what`) that needs a network which the file does not hold."""
        if self.loaded.engines:
            return ValueError(
                f"{self.path} is a file of --to {self.kind}; expected a run's folder or a packed file to {what}"
            )
        return ValueError(
            f"{self.path} does not say what network it holds, as files that were made in Python; to {what}, give "
            "--network package.module:Object or file.py:Object, what makes its float network"
        )


def _test_set(recipe: Recipe, root: Path | None, device: torch.device, tokenizer: Path | None = None) -> TestSet:
    """Load a recipe's test set; `tokenizer`: the folder to load it from, or None for that of the recipe's network."""
    data: Any = recipe.data if root is None or not hasattr(recipe.data, "root") else replace(recipe.data, root=root)
    if not recipe.asks:
        return data.parts(recipe.network.name, device)[2]
    name = recipe.network.name if tokenizer is None else str(tokenizer)
    return dev_questions(data, models.load_tokenizer(name), models.configuration(name))


def open_source(
    path: Path, root: Path | None = None, *, network: str | None = None, arrays: Path | None = None
) -> Source:
    """Open a run's folder or an exported file.

    Args:
        path: the folder or the file, or zoo/NAME.
        root: the folder of the data set; None: the recipe's.
        network: the float network of a packed file that was made in Python, "package.module:Object" or
            "file.py:Object": a module, or a callable without arguments that returns one.
        arrays: an .npz (see `read_samples`) to test on, in place of the recipe's test set.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: the file is damaged, of a newer version, of another network, or not of this project.
    """
    samples, path = None if arrays is None else read_samples(arrays), file_of(path)
    if path.is_dir() and not is_folder_of_format(path):
        if network is not None:
            raise ValueError(f"network is {network!r}; {path} is a run's folder, which holds its own")
        return _run(path, root, samples)
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected a run's folder or an exported file{run_first(path)}")
    loaded = load(path)
    source = _source(loaded, described=network is not None or samples is not None)
    if samples is not None:
        source = replace(source, tested=samples, shape=source.shape or samples.shape)
    if loaded.engines or (source.recipe is None and network is None):
        return source
    if network is not None:
        model = load(path, float_network(network)).model
    else:
        with torch.device("meta"):  # nothing is allocated before the file is known to fit
            check_packed(path, _network_of(source.recipe, loaded.about))
        model = load(path, _network_of(source.recipe, loaded.about)).model
    assert model is not None
    return replace(source, loaded=replace(loaded, model=channels_last(model, torch.device("cpu"))))


def _run(folder: Path, root: Path | None, samples: Samples | None) -> Source:
    """Open the folder of a run; its data are read only where the folder does not say what they are."""
    facts = read_facts(folder)
    if facts is None:
        recipe, model, test = load_run(folder, root, "cpu")
        about, samples_of_run = about_run(recipe, test, model), test
    else:
        recipe = _recipe_in(folder)
        model = _trained(recipe, _network_of(recipe, facts), folder, torch.device("cpu"))
        about, samples_of_run = _about(recipe.network.without_weights(), recipe, facts), None
    loaded = Loaded(folder, RUN, about=about, model=model.eval())
    return Source(
        loaded, recipe, () if recipe.asks else shape_of(about), recipe.quant.act_bits, samples or samples_of_run
    )


def float_network(reference: str) -> nn.Module:
    """Return the module that `reference` names, or the one that it returns when called without arguments.

    Raises:
        ValueError: there is no such module.
    """
    value = imported(reference)
    if isinstance(value, nn.Module):
        return value
    try:
        network = value()
    except Exception as error:
        raise ValueError(f"network is {reference!r}, which cannot be called without arguments ({error!r})") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"network is {reference!r}, which gives {type(network).__name__}; expected a torch.nn.Module")
    return network


def _network_of(recipe: Any, about: Any) -> nn.Module:
    """Return the float network that `about_run` described, with random weights."""
    if recipe.asks:
        return models.answering_from(models.transformers_configuration(about["network"]))
    shape = about["shape"]
    return models.make_network(recipe.network.name, classes=about["classes"], in_channels=shape[0], size=shape[-1])


def about_run(recipe: Recipe, test: TestSet, model: nn.Module) -> dict[str, Any]:
    """Return what an exported file says about its run: the recipe without paths, and what makes its network."""
    network = recipe.network.without_weights()
    if isinstance(test, ImageSet):
        return _about(network, recipe, facts_of(test))
    network = replace(network, name=_without_folders(network.name))
    return _about(network, recipe, {"network": models.configuration_dict(model)})


def _about(network: Network, recipe: Recipe, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"recipe": json.loads(to_json(without_paths(replace(recipe, network=network)))), **facts}


def _without_folders(name: str) -> str:
    """Return the name of a network on the hub as it is, and that of one in a folder without the folders above."""
    plain = name.removeprefix(models.TRANSFORMERS)
    on_the_hub = plain.count("/") <= 1 and not plain.startswith((".", "/")) and not Path(plain).is_dir()
    return models.TRANSFORMERS + (plain if on_the_hub else Path(plain).name)


def _source(loaded: Loaded, described: bool) -> Source:
    """Return a file as a source; `described`: whether the caller gives its network or samples."""
    about, widths = loaded.about, loaded.act_bits
    fixed = None if loaded.shape is None or None in loaded.shape else loaded.shape
    plain = Source(loaded, shape=fixed, act_bits=min(widths) if widths else None)  # type: ignore[arg-type]
    if "recipe" not in about:
        return plain
    try:
        recipe = from_json(json.dumps(about["recipe"]))
        models.check_network(recipe.network.name)
        if recipe.asks and not isinstance(about["network"], dict):
            raise ValueError(f"its network is {about['network']!r}")
        shape = () if recipe.asks else shape_of(about)
    except (KeyError, TypeError, ValueError) as error:
        if described:
            return plain
        raise ValueError(
            f"{loaded.path} does not say what network it holds in a way that is known here ({error!r}); give --network "
            "and --arrays, as for files that were made in Python"
        ) from error
    return Source(loaded, recipe, shape, about.get("act_bits") or recipe.quant.act_bits)


def example_of(source: Source, length: int | None = None) -> Tensor | dict[str, Tensor]:
    """Return one sample as an input of the network: an image, or a window of tokens.

    Args:
        source: the run or file.
        length: tokens of the window; None: the recipe's data.max_length.

    Raises:
        ValueError: the shape of the inputs is not known.
    """
    if source.of_questions and source.recipe is not None:
        data = source.recipe.data
        assert isinstance(data, QuestionSettings)
        tokens = torch.zeros(1, length or data.max_length, dtype=torch.int64)
        return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}
    if isinstance(source.tested, Samples):
        return source.tested.normalise(source.tested.part(slice(0, 1)).images)
    if source.shape is None:
        raise ValueError(
            f"{source.path} does not say what inputs it takes; give --arrays FILE.npz with the arrays {EXPECTED}"
        )
    return torch.zeros(1, *source.shape)


def load_run(folder: Path, root: Path | None = None, device: str | None = None) -> tuple[Recipe, nn.Module, TestSet]:
    """Load a finished run.

    Args:
        folder: the run's folder.
        root: the folder of the data set; None: the recipe's.
        device: the device of the model, as in train.device; None: the recipe's.

    Returns:
        The recipe, the trained model, and the test set.

    Raises:
        FileNotFoundError: the folder holds no finished run.
        ValueError: the recipe or the weights are damaged.
    """
    recipe = _recipe_in(folder)
    place = device_named(device or recipe.train.device)
    test = _test_set(recipe, root, place, folder / NETWORK)
    if isinstance(test, ImageSet):
        network = build_network(recipe.network.without_weights(), test)
    else:
        network = models.answering_from(models.configuration(str(folder / NETWORK)))
    return recipe, _trained(recipe, network, folder, place), test


def _recipe_in(folder: Path) -> Recipe:
    """Return the recipe of the finished run in `folder`."""
    for name in (RECIPE, MODEL_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder / name} does not exist; expected the folder of a finished run{run_first(folder)}"
            )
    try:
        return from_json((folder / RECIPE).read_text())
    except ValueError as error:
        raise ValueError(f"{folder / RECIPE}: {error}") from error


def _trained(recipe: Recipe, network: nn.Module, folder: Path, device: torch.device) -> nn.Module:
    """Return the network of a run, with its weights."""
    model = recipe.quant.build(network)
    models.load_weights(model, folder / MODEL_FILE)
    return channels_last(model, device)
