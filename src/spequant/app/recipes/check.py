"""What recipes are refused for: the first field whose value makes no run, or has no effect, by name."""

import difflib
import math
from typing import Any

import torch

from spequant.app.recipes.overrides import parse_overrides
from spequant.app.recipes.schema import (
    FOLDER,
    IN_MEMORY,
    SQUAD,
    TORCHVISION,
    Data,
    MethodChoice,
    Quantization,
    Recipe,
    Training,
)
from spequant.models import TRANSFORMERS, check_network

AUGMENTATION = ("crop_scale", "color_jitter", "auto_augment")
FILES_ALONE = (*AUGMENTATION, "size", "crop_pct", "interpolation", "check_images")
IMAGES_ALONE = (*FILES_ALONE, "augment", "mixup", "cutmix", "workers")
QUESTIONS_ALONE = ("max_length", "stride")
SPEQ = ("high_bits", "probability", "mix", "loss", "temperature", "weight", "batch_norm", "passes")
TAUGHT = ("teacher", "temperature", "weight")
READS: dict[str, tuple[str, ...]] = {
    "retrain": (),
    "speq": (*SPEQ, "probability_end", "temperature_end", "average", "feature_weight"),
    "distill": (*TAUGHT, "loss"),
    "speq-distill": (*SPEQ, "teacher"),
    "apprentice": ("teacher", "joint"),
    "qkd": ("teacher", "temperature"),
    "sqakd": ("teacher", "temperature"),
    "qfd": ("teacher", "weight", "feature_bits"),
    "gslr": TAUGHT,
    "cmt-kd": ("widths", "temperature"),
    "block-replacement": TAUGHT,
    "member-ensemble": ("widths", "temperature", "weight"),
    "joint-bits": ("widths", "temperature", "weight"),
}
"""{method: the settings that it reads}"""


def check(recipe: Recipe) -> None:
    """ValueError names the first field whose value makes no run, with what was expected."""
    check_network(recipe.network.name)
    for holds, field_name, value, expected in (*_of_training(recipe), *_of_quantization(recipe), *_of_effect(recipe)):
        if not holds:
            raise ValueError(f"{field_name} is {value!r}; expected {expected}")
    check_device(recipe.train.device, "train.device")
    check_data(recipe.data)
    _check_method(recipe.method)
    _check_teacher(recipe)
    _check_questions(recipe)


Row = tuple[bool, str, Any, str]
"""whether a field's value is right, the field, its value, what was expected"""


def _of_training(recipe: Recipe) -> tuple[Row, ...]:
    train = recipe.train
    return (
        (train.epochs >= 1, "train.epochs", train.epochs, "1 or more"),
        (train.batch_size >= 1, "train.batch_size", train.batch_size, "1 or more images"),
        (train.accumulate >= 1, "train.accumulate", train.accumulate, "1 or more parts"),
        (
            train.accumulate < 1 or train.batch_size % train.accumulate == 0,
            "train.accumulate",
            train.accumulate,
            f"a number that divides train.batch_size, {train.batch_size}",
        ),
        (0 <= train.label_smoothing < 1, "train.label_smoothing", train.label_smoothing, "0 or more, below 1"),
        (recipe.data.mixup >= 0, "data.mixup", recipe.data.mixup, "an alpha of 0 or more; 0: none"),
        (recipe.data.cutmix >= 0, "data.cutmix", recipe.data.cutmix, "an alpha of 0 or more; 0: none"),
        (
            train.batch_size % 2 == 0 or not (recipe.data.mixup or recipe.data.cutmix),
            "train.batch_size",
            train.batch_size,
            "an even number: data.mixup and data.cutmix pair images",
        ),
        (0 < train.lr < math.inf, "train.lr", train.lr, "a number above 0"),
        (0 <= train.momentum < 1, "train.momentum", train.momentum, "0 or more, below 1"),
        (train.weight_decay >= 0, "train.weight_decay", train.weight_decay, "0 or more"),
        (train.range_lr is None or train.range_lr >= 0, "train.range_lr", train.range_lr, "0 or more, or None"),
        (train.clip_norm is None or train.clip_norm > 0, "train.clip_norm", train.clip_norm, "above 0, or None"),
        (train.threads is None or train.threads >= 1, "train.threads", train.threads, "1 or more, or None"),
        (train.seed >= 0, "train.seed", train.seed, "0 or more"),
        (
            train.checkpoint_every is None or train.checkpoint_every >= 1,
            "train.checkpoint_every",
            train.checkpoint_every,
            "1 or more steps, or None",
        ),
        (
            train.layers_every is None or train.layers_every >= 1,
            "train.layers_every",
            train.layers_every,
            "1 or more epochs, or None",
        ),
        (recipe.data.measure_every >= 1, "data.measure_every", recipe.data.measure_every, "1 or more epochs"),
    )


def _of_quantization(recipe: Recipe) -> tuple[Row, ...]:
    train, quant = recipe.train, recipe.quant
    return (
        (
            quant.percentile is None or 0 < quant.percentile <= 100,
            "quant.percentile",
            quant.percentile,
            "above 0 and at most 100, or None",
        ),
        (
            recipe.method.name not in ("speq", "speq-distill") or quant.act_bits is not None,
            "quant.act_bits",
            quant.act_bits,
            "bits: SPEQ's teacher differs by its activations' precision",
        ),
        (
            recipe.method.name not in ("speq", "speq-distill")
            or recipe.method.mix
            or bool(quant.overrides)
            or recipe.method.high_bits > (quant.act_bits or 0),
            "method.high_bits",
            recipe.method.high_bits,
            f"more than quant.act_bits, {quant.act_bits}: the teacher would be the student",
        ),
        *(
            (
                value is None or 0 < value < 1,
                f"train.{name}",
                value,
                "a share of steps between 0 and 1, e.g. 0.01, or None",
            )
            for name, value in (
                ("freeze_threshold", train.freeze_threshold),
                ("freeze_threshold_end", train.freeze_threshold_end),
            )
        ),
        (
            train.freeze_threshold_end is None or train.freeze_threshold is not None,
            "train.freeze_threshold_end",
            train.freeze_threshold_end,
            "None: nothing is frozen without train.freeze_threshold",
        ),
    )


def _of_effect(recipe: Recipe) -> tuple[Row, ...]:
    """Of settings that beside others have none."""
    train, quant = recipe.train, recipe.quant
    return (
        (
            train.optimizer == "sgd" or train.momentum == Training.momentum,
            "train.momentum",
            train.momentum,
            f"{Training.momentum}: {train.optimizer} has none",
        ),
        *(
            (
                recipe.quantized or value == getattr(Quantization, name),
                f"quant.{name}",
                value,
                f"{getattr(Quantization, name)!r}, since nothing is quantized",
            )
            for name, value in (
                ("ewgs", quant.ewgs),
                ("percentile", quant.percentile),
                ("per_channel", quant.per_channel),
            )
        ),
        (
            train.layers_every is None or recipe.quantized,
            "train.layers_every",
            train.layers_every,
            "None, since nothing is quantized",
        ),
        (
            not recipe.network.new_head or recipe.network.weights is not None or recipe.network.pretrained,
            "network.new_head",
            recipe.network.new_head,
            "False: random weights have a new head already; or weights, --network.weights RUN or --network.pretrained",
        ),
        (
            not parse_overrides(quant.overrides) or recipe.quantized,
            "quant.overrides",
            quant.overrides,
            "(): a float network has no bits to change",
        ),
    )


def _check_method(choice: MethodChoice) -> None:
    """ValueError: a setting that the method does not read."""
    unread = [name for name in MethodChoice.__dataclass_fields__ if name not in ("name", *READS[choice.name])]
    unread += ["high_bits", "probability", "probability_end"] if choice.mix else []
    for name in unread:
        value, default = getattr(choice, name), getattr(MethodChoice, name)
        if value != default:
            raise ValueError(
                f"method.{name} is {value!r}, which has no effect on {choice.name}"
                f"{' with method.mix' if name in READS[choice.name] else ''}; expected {default!r}"
            )


def _check_teacher(recipe: Recipe) -> None:
    """ValueError: a float teacher that has learned nothing, and never will."""
    method, network = recipe.method, recipe.network
    learns = method.name == "qkd" or (method.name == "apprentice" and method.joint)
    if "teacher" not in READS[method.name] or learns or method.teacher is not None:
        return
    random = "a new head" if network.new_head else "random weights"
    if network.new_head or (network.weights is None and not network.pretrained):
        raise ValueError(
            f"method.teacher is None and the float network has {random}, which teach {method.name} nothing; expected a "
            "float run or weights: --method.teacher RUN"
            f"{'' if network.new_head else ', or --network.weights RUN, which the student starts from, too'}"
        )


def _check_questions(recipe: Recipe) -> None:
    """ValueError: data and network that do not meet."""
    name, asked = recipe.network.name, recipe.data.name == SQUAD
    if asked != name.startswith(TRANSFORMERS):
        expected = f"{TRANSFORMERS}NAME or {TRANSFORMERS}FOLDER" if asked else "a network for images"
        raise ValueError(f"network.name is {name!r} and data.name {recipe.data.name!r}; expected {expected}")
    if asked and recipe.train.label_smoothing:
        raise ValueError(
            f"train.label_smoothing is {recipe.train.label_smoothing!r}, which has no effect on questions; expected 0"
        )


def check_data(data: Data) -> None:
    """ValueError: there is no set of that name, or a field of it has no meaning or no effect."""
    if data.name not in (*IN_MEMORY, FOLDER, SQUAD) and not data.name.startswith(TORCHVISION):
        known = [*IN_MEMORY, FOLDER, f"{TORCHVISION}NAME", SQUAD]
        close = difflib.get_close_matches(data.name, known, n=2)
        hint = f"; did you mean {' or '.join(close)}?" if close else ""
        raise ValueError(f"data.name is {data.name!r}; expected one of {', '.join(known)}{hint}")
    for name, reason in _without_effect(data):
        value, default = getattr(data, name), getattr(Data, name)
        if value != default:
            raise ValueError(f"data.{name} is {value!r}, which has no effect: {reason}; expected {default!r}")
    if data.download and data.name == FOLDER:
        raise ValueError("data.download is True, but a folder is not to be had anywhere; expected False")
    if data.images is not None and data.images < 1:
        raise ValueError(f"data.images is {data.images!r}; expected 1 or more, or None for all")
    if data.held_out < 0:
        raise ValueError(f"data.held_out is {data.held_out!r}; expected 0 or more images")
    if data.workers is not None and data.workers < 0:
        raise ValueError(f"data.workers is {data.workers!r}; expected 0 or more processes, or None")


def _without_effect(data: Data) -> list[tuple[str, str]]:
    """(field, why it has none) of `data`."""
    if data.name == SQUAD:
        return [(name, "squad is a set of questions") for name in IMAGES_ALONE]
    found = [(name, "it is for questions") for name in QUESTIONS_ALONE]
    if data.name in IN_MEMORY:
        return found + [(name, f"{data.name} is a set in memory") for name in FILES_ALONE]
    if data.augment and data.auto_augment and "3a" not in data.auto_augment:  # as in timm
        found.append(("color_jitter", "data.auto_augment stands in for it"))
    return found + ([] if data.augment else [(name, "data.augment is False") for name in AUGMENTATION])


def check_device(name: str, argument: str) -> None:
    """ValueError unless `name` is "auto" or a device that torch has here."""
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"{argument} is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{argument} is {name!r}, but torch finds no GPU here; expected auto or cpu")
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"{argument} is {name!r}, which torch cannot use here; expected auto, cpu or cuda") from error
