"""A recipe: what one run is made of, composed of settings that check themselves; here is what only two of them together
can get wrong."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from spequant.app.recipes.quantization import Quantization
from spequant.app.recipes.training import Training, check_device
from spequant.data import CIFAR10, DataSettings, ImageSettings, QuestionSettings
from spequant.methods import SPEQ, MethodSettings, tasks
from spequant.models import TRANSFORMERS, check_network
from spequant.names import chosen

OF_IMAGES, OF_QUESTIONS = ("classification", "multi-label", "regression", "segmentation"), ("span-extraction",)
"""Names of the tasks that a recipe's images, and its questions, can have."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """The float network to start from."""

    name: str = "resnet20"
    """one of this project's: resnet8, resnet20, resnet32, resnet44, resnet56, vgg16_bn and mobilenet_v2 for small
    images, resnet18 and resnet34 (torchvision's, their additions marked) for larger ones; or any other:
    torchvision/NAME, timm/NAME; for questions transformers/NAME, of the hub, or transformers/FOLDER; or a class or
    function of your own, package.module:Object or file.py:Object, called with those of classes, in_channels and size
    that it names"""
    weights: Path | None = None
    """float weights (.th, .safetensors), or the folder of a run (images: of a low-bit one its weights before rounding,
    e.g. to go from 4 bits to 2); None: random, or pretrained"""
    pretrained: bool = False
    """start from the weights that torchvision, timm or the hub publishes, fetched where its cache does not hold them;
    or those in the folder of a network of transformers"""
    new_head: bool = False
    """transfer learning: a random last layer for the data's classes, all else from weights or pretrained"""

    def __post_init__(self) -> None:
        check_network(self.name)

    @property
    def random(self) -> bool:
        """Whether its weights are."""
        return self.weights is None and not self.pretrained

    def without_weights(self) -> "Network":
        """The same with weights that nothing is read or fetched for."""
        return replace(self, weights=None, pretrained=False, new_head=False)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One run, whole. ValueError: parts that do not go together."""

    name: str = "run"
    data: DataSettings = field(default_factory=CIFAR10)
    network: Network = field(default_factory=Network)
    task: str | None = None
    """of images classification, multi-label, regression or segmentation, of questions span-extraction; or a task of
    your own, package.module:Object or file.py:Object, with logits, loss, and hits or meter; None: the data's"""
    quant: Quantization = field(default_factory=Quantization)
    method: MethodSettings = field(default_factory=SPEQ.Settings)
    train: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        self.method.check_student(self.quant.act_bits, mixed=bool(self.quant.overrides))
        if self.train.layers_every is not None and not self.quantized:
            raise ValueError(
                f"train.layers_every is {self.train.layers_every!r}; expected None, since nothing is quantized"
            )
        if self.task is not None:
            chosen("task", self.task, tasks.by_name)
            if self.task in tasks.by_name and self.task not in (OF_QUESTIONS if self.asks else OF_IMAGES):
                fitting = ", ".join(OF_QUESTIONS if self.asks else OF_IMAGES)
                raise ValueError(
                    f"task is {self.task!r} and data are {type(self.data).__name__}; expected {fitting}, or a task of "
                    "your own"
                )
        self._check_data()

    @property
    def quantized(self) -> bool:
        return self.quant.quantized

    @property
    def asks(self) -> bool:
        """Whether its data are questions, else images."""
        return isinstance(self.data, QuestionSettings)

    def with_seed(self, seed: int) -> "Recipe":
        return replace(self, train=replace(self.train, seed=seed))

    def check_ready(self) -> None:
        """What a recipe may leave open and a run may not. ValueError: a device that is not here; a float teacher that
        has learned nothing, and never will."""
        check_device(self.train.device, "train.device")
        network = self.network
        if network.new_head and network.random:
            raise ValueError(
                "network.new_head is True; expected False: random weights have a new head already; or weights, "
                "--network.weights RUN or --network.pretrained"
            )
        if any(settings.teacher is None for settings in self.method.fixed_teachers):
            random = "a new head" if network.new_head else "random weights"
            if network.new_head or network.random:
                kind = type(self.method).__qualname__.partition(".")[0]
                raise ValueError(
                    f"method.teacher is None and the float network has {random}, which teach {kind} nothing; expected "
                    "a float run or weights: --method.teacher RUN"
                    f"{'' if network.new_head else ', or --network.weights RUN, which the student starts from as well'}"
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
