"""Recipes of format 1 (before 0.1.0), which had one list of fields for all methods and one for all data sets."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from spequant import data, methods
from spequant.data import ImagesInFiles, QuestionSettings

SPEQ_FIELDS = ("high_bits", "probability", "mix", "loss", "temperature", "weight", "batch_norm", "passes")
ADDED = {"probability_end": None, "temperature_end": None, "average": None, "feature_weight": 0.0}


def upgraded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of a recipe of format 1 in format 2.

    Fields without effect are left out. What is not as a recipe should be stays, for the reader of format 2 to refuse.
    """
    parts = dict(values)
    train = dict(parts["train"]) if isinstance(parts.get("train"), dict) else {}
    if isinstance(parts.get("data"), dict):
        old = dict(parts["data"])
        if "measure_every" in old:
            train["measure_every"] = old.pop("measure_every")
        parts["data"] = _data(old)
    if isinstance(parts.get("quant"), dict):
        parts["quant"] = _quantization(dict(parts["quant"]))
    if isinstance(parts.get("method"), dict):
        parts["method"] = _method(dict(parts["method"]))
    if train:
        parts["train"] = _training(train)
    return parts


def _data(old: dict[str, Any]) -> dict[str, Any]:
    """Leave out the fields of other data: format 1 had all fields of images and questions."""
    name = old.get("name", "cifar10")
    kind = ImagesInFiles if str(name).startswith("torchvision/") else data.by_name.get(name)
    if kind is None:
        return old
    every = {f.name for k in (ImagesInFiles, QuestionSettings, data.CIFAR10) for f in dataclasses.fields(k)}
    ours = {f.name for f in dataclasses.fields(kind)} | ({"download"} if kind is ImagesInFiles else set())
    return {"name": name, **{key: v for key, v in old.items() if key in ours or key not in {*every, "name"}}}


def _quantization(old: dict[str, Any]) -> dict[str, Any]:
    decay = old.pop("act_decay", None)
    for side in ("weight", "act"):
        if isinstance(old.get(side), str):
            old[side] = {"name": old[side]}
    if decay is not None and old.get("act", {"name": "pact"}).get("name") == "pact":
        old["act"] = {"name": "pact", "decay": decay}
    return old


def _method(old: dict[str, Any]) -> dict[str, Any]:
    name = old.pop("name", "speq")
    if name not in methods.by_name:
        return {"name": name}
    old = {key: value for key, value in old.items() if value is not None}  # None was the method's default
    speq = {key: old[key] for key in SPEQ_FIELDS if key in old}
    if name == "speq":
        added = {key: old.get(key, default) for key, default in ADDED.items()}
        return {"name": "speq", **speq} if added == ADDED else {"name": "extended-speq", "speq": speq, **added}
    if name == "speq-distill":
        distill = {key: old[key] for key in ("teacher", "loss", "temperature", "weight") if key in old}
        return {"name": name, "speq": speq, "distill": distill}
    if "feature_bits" in old:
        old["bits"] = old.pop("feature_bits")
    fields = {field.name for field in dataclasses.fields(methods.by_name[name])}
    return {"name": name, **{key: value for key, value in old.items() if key in fields}}


def _training(old: dict[str, Any]) -> dict[str, Any]:
    momentum = old.pop("momentum", None)
    if isinstance(old.get("optimizer"), str):
        old["optimizer"] = {"name": old["optimizer"]}
    if momentum is not None and old.get("optimizer", {"name": "sgd"}).get("name") == "sgd":
        old["optimizer"] = {"name": "sgd", "momentum": momentum}
    return old
