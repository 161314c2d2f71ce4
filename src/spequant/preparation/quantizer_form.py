"""A quantizer as plain JSON, and made again from it: its class by name, its constructor's arguments and its place.

Ranges do not belong here: they are tensors of the quantizer's state.
"""

import json
from typing import Any

from spequant.names import FROM_FILE, imported, nearest
from spequant.quantizers import Quantizer, by_name

FIELDS = {"kind", "name", "settings", "ewgs", "padding"}


def plain_settings(quantizer: Quantizer) -> dict[str, Any]:
    """Return the quantizer as JSON.

    Args:
        quantizer: Any quantizer; a class that is not the package's own has to be at the top of a module.

    Returns:
        `kind`: a name of `quantizers.by_name`, or "package.module:Class"; `name`: of its layer; `settings`: the
        arguments of its constructor; where they are set, `ewgs` and the number of the `padding` row.

    Raises:
        ValueError: The class cannot be imported by its name, or a setting is no JSON or does not come back.
    """
    settings = {key: _plain_setting(quantizer, key, value) for key, value in quantizer.config().items()}
    form: dict[str, Any] = {"kind": _kind_of(quantizer), "name": quantizer.name, "settings": settings}
    if quantizer.ewgs:
        form["ewgs"] = quantizer.ewgs
    if quantizer.padding is not None:
        form["padding"] = quantizer.padding
    config = made(form).config()
    for key, value in settings.items():
        if (again := _normal(config.get(key))) != value:
            raise ValueError(
                f"{_named(quantizer)}: {key} is {value!r} in its config(), but the constructor makes {again!r} of it; "
                "expected config() to return what the constructor was given"
            )
    return form


def made(form: Any) -> Quantizer:
    """Return the quantizer that `plain_settings` was given, without a range.

    Raises:
        ValueError: `form` is not what `plain_settings` returns, or names no quantizer.
    """
    if not isinstance(form, dict) or not {"kind", "name", "settings"} <= set(form) <= FIELDS:
        raise ValueError(f"a quantizer is {form!r}; expected an object with kind, name and settings")
    kind, name, settings = form["kind"], form["name"], form["settings"]
    if not isinstance(kind, str) or not isinstance(name, str) or not isinstance(settings, dict):
        raise ValueError(f"a quantizer is {form!r}; expected two texts, kind and name, and an object, settings")
    try:
        quantizer = _class_of(kind)(**settings)
    except TypeError as error:
        raise ValueError(f"{name}: {kind} cannot be made with {settings!r}: {error}") from error
    quantizer.name, quantizer.padding = name, form.get("padding")
    quantizer.ewgs = form.get("ewgs", quantizer.ewgs)
    return quantizer


def _kind_of(quantizer: Quantizer) -> str:
    cls = type(quantizer)
    for name, kind_of_name in by_name.items():
        if cls is kind_of_name:
            return name
    reference = f"{cls.__module__}:{cls.__qualname__}"
    in_script = cls.__module__ == "__main__" or cls.__module__.startswith(FROM_FILE)
    if in_script or "<locals>" in cls.__qualname__ or imported(reference) is not cls:
        raise ValueError(
            f"{_named(quantizer)}: its class is {reference}, which no other program can import by that name; expected "
            "a class at the top of a module, package.module:Class"
        )
    return reference


def _class_of(kind: str) -> type[Quantizer]:
    if kind in by_name:
        return by_name[kind]
    if ":" not in kind or kind.rpartition(":")[0].endswith(".py"):  # a file's code would run wherever it was loaded
        raise ValueError(f"kind is {kind!r}; {nearest(kind, list(by_name))} (your own: package.module:Class)")
    cls = imported(kind)
    if not isinstance(cls, type) or not issubclass(cls, Quantizer):
        raise ValueError(f"kind is {kind!r}, which is {cls!r}; expected a class of quantizers")
    return cls


def _plain_setting(quantizer: Quantizer, key: str, value: Any) -> Any:
    value = _normal(value)
    try:
        same = json.loads(json.dumps(value, allow_nan=False)) == value
    except (TypeError, ValueError):
        same = False
    if not same:
        raise ValueError(
            f"{_named(quantizer)}: {key} is {value!r}, which is no JSON; expected numbers, texts, None, lists and "
            "dicts of texts in what its config() returns"
        )
    return value


def _normal(value: Any) -> Any:
    """Return `value` with lists in place of tuples, as JSON has them."""
    if isinstance(value, tuple | list):
        return [_normal(item) for item in value]
    return {key: _normal(item) for key, item in value.items()} if isinstance(value, dict) else value


def _named(quantizer: Quantizer) -> str:
    return f"{quantizer.name or 'a layer without a name'}, {type(quantizer).__name__}"
