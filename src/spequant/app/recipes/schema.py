"""What a run is made of: typed, frozen dataclasses, each field an override on the command line."""

import dataclasses
import json
import types
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

IN_MEMORY = ("digits", "cifar10", "cifar100", "fashion-mnist")
FOLDER, TORCHVISION, SQUAD = "folder", "torchvision/", "squad"


@dataclass(frozen=True)
class Data:
    """What the network learns from: digits, CIFAR or Fashion-MNIST in memory, images in files, or questions."""

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
    """float weights (.th, .safetensors), or the folder of a run (images: of a low-bit one its weights before rounding,
    e.g. to go from 4 bits to 2); None: random, or pretrained"""
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
    overrides: tuple[str, ...] = ()
    """bits of single layers in place of all these, e.g. layer1.*=3/4 (weight/input), fc=8, conv1=float; the last match
    wins"""
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
    probability_end: float | None = None
    """u at the end of training, a line from `probability`; None: it stays"""
    temperature_end: float | None = None
    """T at the end, a line from `temperature`; None: it stays"""
    average: float | None = None
    """SPEQ: decay of a moving average of the weights, which teaches in place of the weights, e.g. .999; None: none"""
    feature_weight: float = 0.0
    """SPEQ: of the cosine loss between teacher's and student's penultimate features"""
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
    """decay of a moving average of the weights, less at the start, which is then the result, with batch norm of its
    own; None: none"""
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
    layers_every: int | None = None
    """epochs from one look at the layers to the next, for `spequant layers RUN`: clipping, levels in use, codes that
    change. Two forward passes each; the first before training, the last after it. None: none"""
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


ELSEWHERE = (
    "data.root",
    "data.download",
    "data.workers",
    "data.measure_every",
    "train.device",
    "train.threads",
    "train.checkpoint_every",
    "train.layers_every",
    "train.tracker",
)
"""Fields that say where and how a run is carried out; a resumed run may change them."""


def differences(found: Recipe, expected: Recipe) -> list[str]:
    """ "train.lr is 0.1, expected 0.04" for each field in which two recipes differ, `ELSEWHERE` aside. Paths are where
    they lead."""

    def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in values.items():
            items |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return items

    def end(value: Any) -> Any:
        return value.resolve() if isinstance(value, Path) else value

    a, b = flat(dataclasses.asdict(found)), flat(dataclasses.asdict(expected))
    return [f"{k} is {a[k]!r}, expected {b[k]!r}" for k in a if k not in ELSEWHERE and end(a[k]) != end(b[k])]


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
