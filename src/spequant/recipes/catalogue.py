"""The recipes by name: functions that return a `Recipe`; variants by `replace`. Results: docs/results."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from spequant.recipes.schema import Data, MethodChoice, Network, Quantization, Recipe, Training

FLOAT = Quantization(weight_bits=None, act_bits=None)
RETRAIN = MethodChoice(name="retrain")


def _retrain(speq: Recipe) -> Recipe:
    """The same without a teacher."""
    return replace(speq, name=speq.name.replace("-speq", "-retrain"), method=RETRAIN)


def cifar10_resnet20_w2a2_speq() -> Recipe:
    """W2A2 ResNet-20 on CIFAR-10 by SPEQ in 6 epochs, from float weights (--network.weights)."""
    return Recipe(
        "cifar10-resnet20-w2a2-speq",
        data=Data(held_out=0),
        quant=Quantization(act_decay=2e-3),  # against 2e-4: +0.7 on held-out images, docs/results
        method=MethodChoice("speq"),
    )


def cifar10_resnet20_w2a2_retrain() -> Recipe:
    """The same without a teacher."""
    return _retrain(cifar10_resnet20_w2a2_speq())


def _paper(recipe: Recipe) -> Recipe:
    train = replace(recipe.train, epochs=200, lr=0.1, schedule="cosine", weight_decay=2e-4)
    return replace(recipe, name=recipe.name + "-200", quant=Quantization(), train=train)


def cifar10_resnet20_w2a2_speq_200() -> Recipe:
    """200 epochs, peak lr .1, cosine: the stand-in for the paper's schedule (paper: 91.44). Not reproduced yet."""
    return _paper(cifar10_resnet20_w2a2_speq())


def cifar10_resnet20_w2a2_retrain_200() -> Recipe:
    """The same without a teacher (paper: 90.7). Not reproduced yet."""
    return _retrain(cifar10_resnet20_w2a2_speq_200())


def cifar10_5k_resnet20_float() -> Recipe:
    """Float ResNet-20 from scratch on the first 5,120 training images, 40 epochs."""
    return Recipe(
        "cifar10-5k-resnet20-float",
        data=Data(images=5120, held_out=0),
        quant=FLOAT,
        method=RETRAIN,
        train=Training(epochs=40, lr=0.1, weight_decay=5e-4),
    )


def cifar10_5k_resnet20_w2a2_speq() -> Recipe:
    """W2A2 by SPEQ on the same 5,120 images, 40 epochs, T = 2, from that float run (--network.weights)."""
    recipe = cifar10_5k_resnet20_float()
    return replace(
        recipe,
        name="cifar10-5k-resnet20-w2a2-speq",
        network=Network(weights=Path("runs/cifar10-5k-resnet20-float")),
        quant=Quantization(),
        method=MethodChoice("speq", temperature=2.0),
        train=Training(epochs=40),
    )


def cifar10_5k_resnet20_w2a2_retrain() -> Recipe:
    """The same without a teacher."""
    return _retrain(cifar10_5k_resnet20_w2a2_speq())


def digits_float() -> Recipe:
    """Float ResNet-8 on scikit-learn's digits."""
    return Recipe(
        "digits-float",
        data=Data("digits", held_out=0, augment=False),
        network=Network("resnet8"),
        quant=FLOAT,
        method=RETRAIN,
        train=Training(epochs=12, batch_size=64, lr=0.1, precision="fp32", compile=False),
    )


def digits_w2a2_speq() -> Recipe:
    """W2A2 ResNet-8 on the digits by SPEQ."""
    recipe = digits_float()
    return replace(
        recipe,
        name="digits-w2a2-speq",
        network=replace(recipe.network, weights=Path("runs/digits-float")),
        quant=Quantization(),
        method=MethodChoice("speq"),
        train=replace(recipe.train, lr=0.04),
    )


def digits_w2a2_retrain() -> Recipe:
    """The same without a teacher."""
    return _retrain(digits_w2a2_speq())


def _floating(name: str, data: Data, network: Network, epochs: int = 200) -> Recipe:
    """A float network from scratch: where no published weights are at hand."""
    train = Training(epochs=epochs, lr=0.1, schedule="cosine", weight_decay=5e-4)
    return Recipe(f"{name}-float", data=data, network=network, quant=FLOAT, method=RETRAIN, train=train)


def _speq(floating: Recipe, bits: int = 2) -> Recipe:
    """W`bits`A`bits` by SPEQ from that float run, by the stand-in for the paper's schedule."""
    return replace(
        floating,
        name=floating.name.replace("-float", f"-w{bits}a{bits}-speq"),
        network=replace(floating.network, weights=Path("runs") / floating.name),
        quant=Quantization(weight_bits=bits, act_bits=bits),
        method=MethodChoice("speq"),
        train=replace(floating.train, weight_decay=2e-4),
    )


def cifar10_vgg16_float() -> Recipe:
    """Float VGG16-BN on CIFAR-10 from scratch, 200 epochs. Not reproduced yet."""
    return _floating("cifar10-vgg16", Data(held_out=0), Network("vgg16_bn"))


def cifar10_vgg16_w2a2_speq() -> Recipe:
    """W2A2 by SPEQ from that float run, 200 epochs; settings not swept. Not reproduced yet."""
    return _speq(cifar10_vgg16_float())


def cifar10_vgg16_w2a2_retrain() -> Recipe:
    """The same without a teacher. Not reproduced yet."""
    return _retrain(cifar10_vgg16_w2a2_speq())


def cifar100_resnet32_float() -> Recipe:
    """Float ResNet-32 on CIFAR-100 from scratch, 200 epochs. Not reproduced yet."""
    return _floating("cifar100-resnet32", Data("cifar100", held_out=0), Network("resnet32"))


def cifar100_resnet32_w2a2_speq() -> Recipe:
    """W2A2 by SPEQ from that float run, 200 epochs; settings not swept. Not reproduced yet."""
    return _speq(cifar100_resnet32_float())


def cifar100_resnet32_w2a2_retrain() -> Recipe:
    """The same without a teacher. Not reproduced yet."""
    return _retrain(cifar100_resnet32_w2a2_speq())


def cifar100_mobilenetv2_float() -> Recipe:
    """Float MobileNetV2 on CIFAR-100 from scratch, 200 epochs. Not reproduced yet."""
    return _floating("cifar100-mobilenetv2", Data("cifar100", held_out=0), Network("mobilenet_v2"))


def cifar100_mobilenetv2_w2a2_speq() -> Recipe:
    """W2A2 by SPEQ from that float run, 200 epochs, depthwise layers by least squares a channel; to freeze oscillating
    weights: --train.freeze-threshold. Settings not swept. Not reproduced yet."""
    return _speq(cifar100_mobilenetv2_float())


def cifar100_mobilenetv2_w2a2_retrain() -> Recipe:
    """The same without a teacher. Not reproduced yet."""
    return _retrain(cifar100_mobilenetv2_w2a2_speq())


def cifar100_mobilenetv2_w4a4_speq() -> Recipe:
    """W4A4, where depthwise layers lose less; oscillating weights are frozen by the thresholds that their authors give
    for 4 bits on ImageNet. Not a row of the paper. Not reproduced yet."""
    recipe = _speq(cifar100_mobilenetv2_float(), 4)
    return replace(recipe, train=replace(recipe.train, freeze_threshold=0.1, freeze_threshold_end=0.01))


def cifar100_mobilenetv2_w4a4_retrain() -> Recipe:
    """The same without a teacher. Not reproduced yet."""
    return _retrain(cifar100_mobilenetv2_w4a4_speq())


def fashion_resnet20_float() -> Recipe:
    """Float ResNet-20 on Fashion-MNIST from scratch, 30 epochs. Not a row of the paper. Not reproduced yet."""
    return _floating("fashion-resnet20", Data("fashion-mnist", held_out=0), Network("resnet20"), epochs=30)


def fashion_resnet20_w2a2_speq() -> Recipe:
    """W2A2 by SPEQ from that float run, 30 epochs; settings not swept. Not reproduced yet."""
    return _speq(fashion_resnet20_float())


def fashion_resnet20_w2a2_retrain() -> Recipe:
    """The same without a teacher. Not reproduced yet."""
    return _retrain(fashion_resnet20_w2a2_speq())


RECIPES: dict[str, Callable[[], Recipe]] = {
    make().name: make
    for make in (
        cifar10_resnet20_w2a2_speq,
        cifar10_resnet20_w2a2_retrain,
        cifar10_resnet20_w2a2_speq_200,
        cifar10_resnet20_w2a2_retrain_200,
        cifar10_vgg16_float,
        cifar10_vgg16_w2a2_speq,
        cifar10_vgg16_w2a2_retrain,
        cifar100_resnet32_float,
        cifar100_resnet32_w2a2_speq,
        cifar100_resnet32_w2a2_retrain,
        cifar100_mobilenetv2_float,
        cifar100_mobilenetv2_w2a2_speq,
        cifar100_mobilenetv2_w2a2_retrain,
        cifar100_mobilenetv2_w4a4_speq,
        cifar100_mobilenetv2_w4a4_retrain,
        fashion_resnet20_float,
        fashion_resnet20_w2a2_speq,
        fashion_resnet20_w2a2_retrain,
        cifar10_5k_resnet20_float,
        cifar10_5k_resnet20_w2a2_speq,
        cifar10_5k_resnet20_w2a2_retrain,
        digits_float,
        digits_w2a2_speq,
        digits_w2a2_retrain,
    )
}
