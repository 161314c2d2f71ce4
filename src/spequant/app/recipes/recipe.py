"""A recipe: all settings of one run. Each part checks itself; this file checks what depends on two parts."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.training import Training
from spequant.data import CIFAR10, DataSettings, ImageSettings, QuestionSettings
from spequant.methods import SPEQ, MethodSettings, tasks
from spequant.methods.tasks import AnyTask
from spequant.models import TRANSFORMERS, check_network
from spequant.names import called_with, named_or_imported

OF_IMAGES, OF_QUESTIONS = ("classification", "multi-label", "regression", "segmentation"), ("span-extraction",)
"""Names of the tasks that a recipe's images, and its questions, can have."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """The float network that a run starts from."""

    name: str = "resnet20"
    """for small images resnet8, resnet20, resnet32, resnet44, resnet56, vgg16_bn, mobilenet_v1_025 or mobilenet_v2;
    for larger ones resnet18 or resnet34; torchvision/NAME; timm/NAME; for questions transformers/NAME (of the hub) or
    transformers/FOLDER; or your own class or function, package.module:Object or file.py:Object, which is called with
    those of classes, in_channels and size that it names"""
    weights: Path | None = None
    """file of float weights (.th, .pt, .safetensors), or the folder of a run; from a low-bit run on images it takes the
    weights before rounding, e.g. to go from 4 bits to 2; of a file with several states one, FILE:model_ema; None:
    random, or pretrained"""
    pretrained: bool = False
    """whether to start from the weights that torchvision, timm or the hub publishes, which are fetched unless they are
    in its cache; or from those in a transformers folder"""
    new_head: bool = False
    """whether the last layer is new and random, for the classes of the data, and all other layers have the weights
    above (transfer learning)"""

    def __post_init__(self) -> None:
        check_network(self.name)

    @property
    def random(self) -> bool:
        """Whether the weights are random."""
        return self.weights is None and not self.pretrained

    def without_weights(self) -> "Network":
        """Return the same network with random weights, for which nothing is read or fetched."""
        return replace(self, weights=None, pretrained=False, new_head=False)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All settings of one run.

    Raises:
        ValueError: two parts do not go together.
    """

    name: str = "run"
    """name of the run, and of its folder"""
    data: DataSettings = field(default_factory=CIFAR10)
    """what the network learns from and is tested on"""
    network: Network = field(default_factory=Network)
    """the float network that the run starts from"""
    task: str | None = None
    """for images classification, multi-label, regression or segmentation, for questions span-extraction; or your own
    task, package.module:Object or file.py:Object, with logits, loss, and hits or meter; None: that of the data"""
    quant: Quantization = field(default_factory=Quantization)
    """what is quantized, and how"""
    method: MethodSettings = field(default_factory=SPEQ.Settings)
    """how the low-bit network is trained"""
    train: Training = field(default_factory=Training)
    """schedule and machine"""

    def __post_init__(self) -> None:
        self.method.check_student(self.quant.act_bits, mixed=bool(self.quant.overrides))
        if self.train.layers_every is not None and not self.quantized:
            raise ValueError(
                f"train.layers_every is {self.train.layers_every!r}; expected None, since nothing is quantized"
            )
        if self.task is not None:
            self._check_task(self.task)
        self._check_data()

    @property
    def quantized(self) -> bool:
        return self.quant.quantized

    @property
    def asks(self) -> bool:
        """Whether the data are questions; otherwise they are images."""
        return isinstance(self.data, QuestionSettings)

    @property
    def chosen_task(self) -> AnyTask | None:
        """The task that `task` names (an object of a class that it names); None: that of the data."""
        thing = None if self.task is None else named_or_imported("task", self.task, tasks.by_name)
        return called_with(thing, {}, f"task {self.task}") if isinstance(thing, type) else thing

    def with_seed(self, seed: int) -> "Recipe":
        return replace(self, train=replace(self.train, seed=seed))

    def _check_task(self, name: str) -> None:
        thing, fitting = named_or_imported("task", name, tasks.by_name), OF_QUESTIONS if self.asks else OF_IMAGES
        if name in tasks.by_name and name not in fitting:
            raise ValueError(
                f"task is {name!r} and data are {type(self.data).__name__}; expected {', '.join(fitting)}, or a task "
                "of your own"
            )
        missing = [part for part in ("logits", "loss") if not callable(getattr(thing, part, None))]
        if not any(callable(getattr(thing, part, None)) for part in ("hits", "meter")):
            missing.append("hits")
        if missing:
            raise ValueError(
                f"task is {name!r}, which has no {', '.join(missing)}; expected logits, loss, and hits or meter"
            )

    def _check_data(self) -> None:
        name, smoothing = self.network.name, self.train.label_smoothing
        if ":" not in name and self.asks != name.startswith(TRANSFORMERS):
            expected = f"{TRANSFORMERS}NAME or {TRANSFORMERS}FOLDER" if self.asks else "a network for images"
            data = type(self.data).__name__
            raise ValueError(f"network.name is {name!r} and data are {data}; expected {expected}")
        if self.asks and smoothing:
            raise ValueError(f"train.label_smoothing is {smoothing!r}, which has no effect on questions; expected 0")
        mixes = isinstance(self.data, ImageSettings) and (self.data.mixup or self.data.cutmix)
        if mixes and self.train.batch_size % 2:
            raise ValueError(
                f"train.batch_size is {self.train.batch_size}; expected an even number: data.mixup and data.cutmix "
                "pair images"
            )
        if self.method.soft_labels_file is not None:
            self._check_soft_labels(self.method.soft_labels_file[0], mixes=bool(mixes))

    def _check_soft_labels(self, path: Path, *, mixes: bool) -> None:
        task = "span-extraction" if self.asks else self.task or "classification"
        if task != "classification":
            raise ValueError(
                f"method.soft_labels is {str(path)!r} and the task {task}; expected None: such files are of "
                "classification"
            )
        if mixes:
            raise ValueError(
                f"method.soft_labels is {str(path)!r}, a file of answers to single images; expected data.mixup and "
                "data.cutmix of 0, or None"
            )
