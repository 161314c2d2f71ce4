"""What a run is made of: typed, frozen dataclasses, each field an override on the command line."""

import dataclasses
import difflib
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from spequant.models import TRANSFORMERS, check_network

IN_MEMORY = ("digits", "cifar10", "cifar100", "fashion-mnist")
FOLDER, TORCHVISION, SQUAD = "folder", "torchvision/", "squad"
AUGMENTATION = ("crop_scale", "color_jitter", "auto_augment")
FILES_ALONE = (*AUGMENTATION, "size", "crop_pct", "interpolation", "check_images")
IMAGES_ALONE = (*FILES_ALONE, "augment", "mixup", "cutmix", "workers")
QUESTIONS_ALONE = ("max_length", "stride")


@dataclass(frozen=True)
class Data:
    """What the network learns from: one of `IN_MEMORY`, images in files, or questions."""

    name: str = "cifar10"
    """digits, cifar10, cifar100 or fashion-mnist; folder: images below root/train/CLASS and root/val/CLASS (or test);
    torchvision/NAME: any of torchvision's sets with a class an image, e.g. torchvision/Flowers102; squad: SQuAD 1.1"""
    root: Path | None = None
    """folder that holds cifar-10-batches-bin, cifar-100-binary, fashion-mnist or squad, the folders of images, or
    torchvision's files; None: the environment's SPEQUANT_DATA; Fashion-MNIST is found where Debian's package puts it,
    too"""
    download: bool = False
    """fetch the set with torchvision, or questions from the hub, where root does not hold it"""
    images: int | None = None
    """train on the first so many images, or questions, alone, and hold out from those after them; None: all. Files and
    questions: the first of an order drawn once"""
    held_out: int = 5000
    """training images, or questions, kept apart for choices, measured before training, during and after it; 0: none"""
    measure_every: int = 1
    """epochs from one measurement on the held-out images to the next"""
    augment: bool = True
    """in memory: pad-crop by 4 and flip; files: a random part of the image scaled to the size, and flip"""
    crop_scale: float = 0.08
    """files: least share of an image's area in that random part"""
    color_jitter: float | None = None
    """files: largest random change of brightness, contrast and saturation, e.g. .4; None: none"""
    auto_augment: str | None = None
    """files: timm's notation, e.g. rand-m9-mstd0.5, in place of color_jitter; None: none"""
    mixup: float = 0.0
    """alpha of mixup in training, e.g. .2; 0: none. Pairs are made within a process's part of a batch"""
    cutmix: float = 0.0
    """alpha of CutMix, e.g. 1; 0: none. With mixup, each batch takes one of the two"""
    size: int | None = None
    """files: side of the images that the network sees, pixels; None: the network's own, else 224"""
    crop_pct: float | None = None
    """files: in evaluation, share of the shorter side that the crop of the middle takes; None: the network's own, else
    .875"""
    interpolation: str | None = None
    """files: bilinear, bicubic, nearest, box, hamming or lanczos; None: the network's own, else bilinear"""
    check_images: bool = False
    """files: decode every image before anything else, and leave out those that cannot be, with a warning that names
    them; without it such a file ends the run with its name"""
    workers: int | None = None
    """files: processes that decode and augment, for each process of training; 0: none apart; None: a CPU fewer than
    there are, shared by the processes, 8 at most"""
    max_length: int = 384
    """questions: tokens of a window, question and special ones with them"""
    stride: int = 128
    """questions: tokens that a window of a longer text shares with the next"""


@dataclass(frozen=True)
class Network:
    """The float network to start from."""

    name: str = "resnet20"
    """one of this project's: resnet8, resnet20, resnet32, resnet44, resnet56, vgg16_bn and mobilenet_v2 for small
    images, resnet18 and resnet34 (torchvision's, their additions marked) for larger ones; or any other:
    torchvision/NAME, timm/NAME; for questions transformers/NAME, of the hub, or transformers/FOLDER"""
    weights: Path | None = None
    """float weights (.th, .safetensors), or the folder of a float run; None: random, or pretrained"""
    pretrained: bool = False
    """start from the weights that torchvision, timm or the hub publishes, fetched where its cache does not hold them;
    or those in the folder of a network of transformers"""
    new_head: bool = False
    """transfer learning: a random last layer for the data's classes, all else from weights or pretrained"""


@dataclass(frozen=True)
class Quantization:
    """What is rounded, and how. Both bits None: a float network."""

    weight: Literal["sawb", "lsq", "dorefa", "least-squares", "minmax", "pact", "csq", "apot"] = "sawb"
    weight_bits: int | None = 2
    depthwise: Literal["lsq", "least-squares", "sawb", "dorefa", "minmax"] | None = None
    """of depthwise convolutions, one range a channel, at weight_bits; None: as weight, but least-squares for sawb"""
    act: Literal["pact", "lsq", "lsq-plus", "dorefa", "minmax"] = "pact"
    act_bits: int | None = 2
    act_decay: float = 2e-4
    """PACT's L2 penalty on its clips, ends and addends aside (those keep 2e-4); without it they only grow"""
    end_bits: int | None = 8
    """first and last layer; None: float"""
    embedding_bits: int | None = 8
    """tables of embeddings; None: float"""
    residual_bits: int | None = 8
    """addends of residual additions; None: float"""
    product_bits: int | None = None
    """both sides of attention's products q k and p v; None: float"""
    per_channel: bool = False
    ewgs: float = 0.0
    """d of element-wise gradient scaling, EWGS, e.g. .001; 0: straight-through"""
    percentile: float | None = None
    """clip at this percentile of the activations in calibration; None: clip of least squared error"""


@dataclass(frozen=True)
class MethodChoice:
    """How the quantized network is trained."""

    name: Literal[
        "retrain",
        "speq",
        "distill",
        "speq-distill",
        "apprentice",
        "qkd",
        "sqakd",
        "qfd",
        "gslr",
        "cmt-kd",
        "block-replacement",
        "member-ensemble",
        "joint-bits",
    ] = "speq"
    high_bits: int = 8
    """n_H, the teacher's activation bits"""
    probability: float = 0.5
    """u, of n_H at each layer and forward"""
    mix: bool = False
    """draw from all widths 2 .. 8 in place of n_A and n_H"""
    loss: Literal["cosine", "kl"] | None = None
    """None: SPEQ's cosine, and KL to a separate teacher"""
    temperature: float | None = None
    """T; None: the method's own"""
    weight: float | None = None
    """of the distillation loss; None: the method's own"""
    batch_norm: Literal["leave", "update", "eval"] = "leave"
    """of the teacher's pass"""
    passes: int = 1
    """teacher passes averaged"""
    teacher: Path | None = None
    """float weights of the separate teacher; None: the float network that the student starts from"""
    joint: bool = False
    """Apprentice: the teacher learns, too (scheme A)"""
    feature_bits: int = 4
    """QFD: of the teacher's feature"""
    widths: tuple[int, ...] = (4, 8)
    """bits of cmt-kd's teachers; activation bits of member-ensemble and joint-bits beside the network's own"""


@dataclass(frozen=True)
class Training:
    """Schedule and machine."""

    epochs: int = 6
    batch_size: int = 128
    """images of an optimizer step, over all processes"""
    accumulate: int = 1
    """parts that a process splits its share of a batch into, one after another, to save memory"""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: float = 0.04
    """at its peak"""
    momentum: float = 0.9
    weight_decay: float = 1e-4
    range_lr: float | None = None
    """of clips and steps; None: as lr"""
    schedule: Literal["cosine", "one-cycle", "step"] = "one-cycle"
    label_smoothing: float = 0.0
    """share of a training label spread evenly over all classes, e.g. .1; below 1"""
    clip_norm: float | None = None
    """largest norm of the gradient; None: any"""
    ema: float | None = None
    """decay of a moving average of the weights, which is then the result, with batch norm of its own; None: none"""
    precision: Literal["fp32", "bf16"] = "bf16"
    """autocast of the training steps; quantization and evaluation stay fp32"""
    freeze_threshold: float | None = None
    """freeze weights of 4 bits or fewer that oscillate more often than this (share of steps); None: none"""
    freeze_threshold_end: float | None = None
    """where a half cosine takes that threshold by the end of training; None: it stays"""
    compile: bool = True
    sync_batch_norm: bool = True
    """with several processes, batch statistics over all of them"""
    deterministic: bool = False
    """on a GPU: deterministic kernels alone, slower; a CPU is deterministic as it is"""
    checkpoint_every: int | None = None
    """steps from one checkpoint to the next within an epoch; None: at the end of each epoch alone"""
    tracker: str | None = None
    """tensorboard, wandb ... or any other that accelerate knows; metrics.jsonl is written in any case"""
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    """of torch on the CPU; None: as torch finds them"""


@dataclass(frozen=True)
class Recipe:
    """One run, whole."""

    name: str = "run"
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    quant: Quantization = field(default_factory=Quantization)
    method: MethodChoice = field(default_factory=MethodChoice)
    train: Training = field(default_factory=Training)

    @property
    def quantized(self) -> bool:
        return self.quant.weight_bits is not None or self.quant.act_bits is not None


def check(recipe: Recipe) -> None:
    """ValueError names the first field whose value makes no run, with what was expected."""
    train, quant = recipe.train, recipe.quant
    check_network(recipe.network.name)
    for holds, field_name, value, expected in (
        (train.epochs >= 1, "train.epochs", train.epochs, "1 or more"),
        (train.batch_size >= 1, "train.batch_size", train.batch_size, "1 or more images"),
        (train.accumulate >= 1, "train.accumulate", train.accumulate, "1 or more parts"),
        (0 <= train.label_smoothing < 1, "train.label_smoothing", train.label_smoothing, "0 or more, below 1"),
        (recipe.data.mixup >= 0, "data.mixup", recipe.data.mixup, "an alpha of 0 or more; 0: none"),
        (recipe.data.cutmix >= 0, "data.cutmix", recipe.data.cutmix, "an alpha of 0 or more; 0: none"),
        (
            train.batch_size % 2 == 0 or not (recipe.data.mixup or recipe.data.cutmix),
            "train.batch_size",
            train.batch_size,
            "an even number: data.mixup and data.cutmix pair images",
        ),
        (train.lr > 0, "train.lr", train.lr, "a number above 0"),
        (train.momentum >= 0, "train.momentum", train.momentum, "0 or more"),
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
        (recipe.data.measure_every >= 1, "data.measure_every", recipe.data.measure_every, "1 or more epochs"),
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
    ):
        if not holds:
            raise ValueError(f"{field_name} is {value!r}; expected {expected}")
    check_device(train.device, "train.device")
    check_data(recipe.data)
    _check_questions(recipe)


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
    if data.workers is not None and data.workers < 0:
        raise ValueError(f"data.workers is {data.workers!r}; expected 0 or more processes, or None")


def _without_effect(data: Data) -> list[tuple[str, str]]:
    """(field, why it has none) of `data`."""
    if data.name == SQUAD:
        return [(name, "squad is a set of questions") for name in IMAGES_ALONE]
    found = [(name, "it is for questions") for name in QUESTIONS_ALONE]
    if data.name in IN_MEMORY:
        return found + [(name, f"{data.name} is a set in memory") for name in FILES_ALONE]
    return found + ([] if data.augment else [(name, "data.augment is False") for name in AUGMENTATION])


def check_device(name: str, argument: str) -> None:
    """ValueError unless `name` is "auto" or a device that torch has here."""
    try:
        device = torch.device("cpu" if name == "auto" else name)
    except RuntimeError as error:
        raise ValueError(f"{argument} is {name!r}; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{argument} is {name!r}, but torch finds no GPU here; expected auto or cpu")


ELSEWHERE = (
    "data.root",
    "data.download",
    "data.workers",
    "train.device",
    "train.threads",
    "train.checkpoint_every",
    "train.tracker",
)
"""Fields that say where and how a run is carried out; a resumed run may change them."""


def differences(found: Recipe, expected: Recipe) -> list[str]:
    """ "train.lr is 0.1, expected 0.04" for each field in which two recipes differ, `ELSEWHERE` aside."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in values.items():
            items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return items

    a, b = flat(dataclasses.asdict(found)), flat(dataclasses.asdict(expected))
    return [f"{k} is {a[k]!r}, expected {b[k]!r}" for k in a if k not in ELSEWHERE and a[k] != b[k]]


def to_json(recipe: Recipe) -> str:
    return json.dumps(dataclasses.asdict(recipe), indent=2, default=str)


def from_json(text: str) -> Recipe:
    """The recipe that `to_json` wrote. ValueError names a field that this version does not have, or cannot read."""
    try:
        values = json.loads(text)
    except ValueError as error:
        raise ValueError(f"recipe is no JSON ({error}); expected what spequant wrote to recipe.json") from error
    return _read(Recipe, values, "recipe")


def _read(kind: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise ValueError(f"{where} is {value!r}; expected an object with the fields of {kind.__name__}")  # type: ignore[union-attr]
        hints = typing.get_type_hints(kind)
        unknown = set(value) - set(hints)
        if unknown:
            raise ValueError(f"{where} has the fields {sorted(unknown)}, unknown here; expected {sorted(hints)}")
        return kind(**{k: _read(hints[k], v, f"{where}.{k}") for k, v in value.items()})  # type: ignore[operator]
    if typing.get_origin(kind) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} is {value!r}; expected a list")
        return tuple(_read(typing.get_args(kind)[0], item, where) for item in value)
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        kinds = [k for k in typing.get_args(kind) if k is not type(None)]
        return None if value is None else _read(kinds[0], value, where)
    if typing.get_origin(kind) is Literal:
        if value not in typing.get_args(kind):
            raise ValueError(f"{where} is {value!r}; expected one of {', '.join(map(repr, typing.get_args(kind)))}")
        return value
    accepted = {Path: str, float: (int, float)}.get(kind, kind)
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise ValueError(f"{where} is {value!r}; expected {kind.__name__}")
    return Path(str(value)) if kind is Path else value
