"""Names in a recipe, and the settings that they choose: those of the library, or an object of the user."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Generic, TypeVar, cast

from spequant import data, methods, quantizers
from spequant.data import DataSettings, ImageSet, ImagesInMemory, Torchvision
from spequant.methods import Method, MethodSettings, Start
from spequant.names import called_with, named_or_imported, reference_to
from spequant.quantizers import Quantizer, QuantizerSettings
from spequant.train import OptimizerSettings
from spequant.train.optimizers import optimizers

Settings = TypeVar("Settings")
TORCHVISION = "torchvision/"


class Choice(Generic[Settings]):
    """A part of a recipe that is chosen by name; each name stands for a class of settings.

    Args:
        argument: what error messages call the name.
        base: the class that these settings derive from.
        library: the library's classes of settings, by name.
        adopt: makes a class of settings from a user's object that is no such class, or raises ValueError.
    """

    def __init__(
        self,
        argument: str,
        base: type[Settings],
        library: Mapping[str, type[Settings]],
        adopt: Callable[[Any, str], type[Settings]],
    ):
        self.argument, self.base, self.library, self.adopt = argument, base, library, adopt
        self.names: dict[type, str] = {settings: name for name, settings in library.items()}

    def named(self, name: str, argument: str | None = None) -> type[Settings]:
        """Return the class of settings that `name` stands for.

        Args:
            name: "speq", "package.module:Object", "file.py:Object" ...
            argument: what the error message calls the name; default: this choice's.

        Raises:
            ValueError: there is no such name, or the object cannot be used here.
        """
        settings = self._named(name, argument or self.argument)
        self.names.setdefault(settings, name)
        return settings

    def _named(self, name: str, argument: str) -> type[Settings]:
        if self.base is DataSettings and name.startswith(TORCHVISION):
            return Torchvision.named(name.removeprefix(TORCHVISION))  # type: ignore[return-value]
        thing = named_or_imported(argument, name, self.library)
        if inspect.isclass(thing):  # inherited settings would make the base class
            thing = vars(thing).get("Settings", thing)
        if inspect.isclass(thing) and issubclass(thing, self.base):
            if not is_dataclass(thing):
                raise ValueError(f"{argument} is {name!r}, {thing.__name__}, which is no dataclass; decorate it")
            if missing := getattr(thing, "__abstractmethods__", None):
                raise ValueError(f"{argument} is {name!r}; {thing.__name__} has no {', '.join(sorted(missing))}")
            return thing
        kind = next((made for made, n in self.names.items() if n == name), None)
        return kind or self.adopt(thing, name)  # type: ignore[return-value]

    def name_of(self, settings: Settings) -> str:
        """Return the name that stands for the class of `settings`."""
        if isinstance(settings, Torchvision):
            return TORCHVISION + settings.set
        return self.names.get(type(settings)) or reference_to(type(settings))


def _made(base: type, name: str, methods: dict[str, Any], doc: str | None) -> Any:
    """Make a class of settings without options."""
    content = {**methods, "__doc__": (doc or f"{name}.").strip().partition("\n")[0], "__module__": __name__}
    return dataclass(frozen=True, kw_only=True)(type(f"Own{base.__name__}", (base,), content))


def _adopt_method(thing: Any, name: str) -> type[MethodSettings]:
    if not callable(thing):
        raise ValueError(f"method is {name!r}, a {type(thing).__name__}; expected a class or function, or settings")

    def build(self: MethodSettings, start: Start) -> Method:
        if not inspect.isclass(thing) and [*inspect.signature(thing).parameters][:2] == ["model", "batch"]:
            return cast(Method, thing)
        at_hand = {f.name: getattr(start, f.name) for f in fields(start)}
        return called_with(thing, {**at_hand, "teacher": start.network, "start": start}, f"method {name}")

    return _made(MethodSettings, name, {"build": build}, thing.__doc__)


def _adopt_quantizer(thing: Any, name: str) -> type[QuantizerSettings]:
    raise ValueError(f"{name!r} is no quantizer; expected a class that derives from {Quantizer.__module__}.Quantizer")


def _adopt_optimizer(thing: Any, name: str) -> type[OptimizerSettings]:
    if not callable(thing):
        raise ValueError(f"train.optimizer is {name!r}, a {type(thing).__name__}; expected a class or function")
    return _made(OptimizerSettings, name, {"build": lambda self, groups: thing(groups)}, f"{name}, with its defaults.")


def _adopt_data(thing: Any, name: str) -> type[DataSettings]:
    if not callable(thing):
        raise ValueError(f"data is {name!r}, a {type(thing).__name__}; expected a function, a class or settings")

    def load(self: Any, network: str) -> tuple[ImageSet, ImageSet]:
        pair = called_with(thing, {"network": network}, f"data {name}")
        if not (isinstance(pair, tuple) and len(pair) == 2 and all(isinstance(part, ImageSet) for part in pair)):
            raise ValueError(f"data {name} gave {type(pair).__name__}; expected (train, test), two spequant ImageSets")
        return pair

    return _made(ImagesInMemory, name, {"load": load}, thing.__doc__)


METHOD: Choice[MethodSettings] = Choice("method", MethodSettings, methods.by_name, _adopt_method)
DATA: Choice[DataSettings] = Choice("data", DataSettings, data.by_name, _adopt_data)
OPTIMIZER: Choice[OptimizerSettings] = Choice("train.optimizer", OptimizerSettings, optimizers, _adopt_optimizer)
QUANTIZER: Choice[QuantizerSettings] = Choice(
    "quantizer", QuantizerSettings, {n: kind.Settings for n, kind in quantizers.by_name.items()}, _adopt_quantizer
)
CHOICES: tuple[Choice[Any], ...] = (METHOD, DATA, OPTIMIZER, QUANTIZER)
