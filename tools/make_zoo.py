"""Makes the networks of the zoo: trains them, writes the packed file and its card.

    python tools/make_zoo.py NAME ... [--work FOLDER] [--root FOLDER]

A run that is there already is taken as it is, one that was stopped goes on. The file is of the first seed: nothing is
chosen by the test set. Without a name, it says which networks there are.
"""

import argparse
import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any, Literal

import torch

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.runs import evaluate_source, export_source, run
from spequant.app.runs.folder import ENVIRONMENT
from spequant.app.runs.images import Images, measure
from spequant.app.terminal import Terminal
from spequant.data import CIFAR10, CIFAR100
from spequant.deploy.zoo import ZOO_FOLDER
from spequant.files import write_whole
from spequant.methods import JointBits

PUBLISHED = "the float weights that it starts from: BSD-2-Clause (akamaster/pytorch_resnet_cifar10)"
KRIZHEVSKY = "(Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009): no licence stated"
LICENCES = {
    "digits": "scikit-learn's handwritten digits (UCI, Optical Recognition of Handwritten Digits): CC BY 4.0",
    "cifar10": f"CIFAR-10 {KRIZHEVSKY}",
    "cifar100": f"CIFAR-100 {KRIZHEVSKY}",
}

SETS = {"cifar10": ("CIFAR-10", CIFAR10(held_out=0)), "cifar100": ("CIFAR-100", CIFAR100(held_out=0))}
TITLES = {"resnet8": "ResNet-8", "resnet32": "ResNet-32", "mobilenet_v1_025": "MobileNetV1 at a quarter of its width"}


@dataclass(frozen=True)
class Entry:
    """A network of the zoo.

    Args:
        title: One line.
        data: Key of `LICENCES`.
        floating: Makes the recipe of the float network that the low-bit one starts from; trained with seed 0.
        low_bit: Makes the recipe of the low-bit network.
        seeds: Of the low-bit runs.
        published: File of float weights below ROOT/weights, which are taken in place of a float run.
        widths: Activation bits at which the file is measured, too.
    """

    title: str
    data: str
    floating: Callable[[], Recipe]
    low_bit: Callable[[], Recipe]
    seeds: tuple[int, ...] = (0, 1, 2)
    published: str | None = None
    widths: tuple[int, ...] = ()


def _from_scratch(
    network: str,
    bits: int,
    epochs: int,
    float_epochs: int = 30,
    data: str = "cifar10",
    precision: Literal["bf16", "fp32"] = "bf16",
) -> Entry:
    """A network on `data`, of `SETS`: float epochs, in `precision`, then `epochs` by SPEQ."""
    title, images = SETS[data]

    def floating() -> Recipe:
        recipe = RECIPES["cifar10-resnet20-float"]()
        return replace(
            recipe,
            name=f"{data}-{network}-float",
            data=images,
            network=replace(recipe.network, name=network),
            train=replace(recipe.train, epochs=float_epochs, schedule="one-cycle", precision=precision),
        )

    def low_bit() -> Recipe:
        recipe = RECIPES["cifar10-resnet20-w2a2-speq"]()
        return replace(
            recipe,
            name=f"{data}-{network}-w{bits}a{bits}-speq",
            data=images,
            network=floating().network,
            quant=replace(recipe.quant, weight_bits=bits, act_bits=bits),
            train=replace(recipe.train, epochs=epochs),
        )

    return Entry(f"{TITLES[network]}, W{bits}A{bits} by SPEQ, on {title}", data, floating, low_bit)


def _any_precision(of: Entry, name: str, widths: tuple[int, ...]) -> Entry:
    """The network of `of`, trained at its own and at 4 and 8 bits at once, for 5 epochs."""

    def low_bit() -> Recipe:
        recipe = of.low_bit()
        train = replace(recipe.train, epochs=5)
        return replace(recipe, name=name, method=JointBits.Settings(widths=(4, 8)), train=train)

    title = f"ResNet-8, W2, activations at {widths[0]} to {widths[-1]} bits from one file, on CIFAR-10"
    return replace(of, title=title, low_bit=low_bit, widths=widths)


def _resnet20(bits: int, epochs: int) -> Entry:
    """ResNet-20 on CIFAR-10, from published float weights, by SPEQ."""

    def low_bit() -> Recipe:
        recipe = RECIPES["cifar10-resnet20-w2a2-speq"]()
        return replace(
            recipe,
            name=f"cifar10-resnet20-w{bits}a{bits}-speq",
            data=CIFAR10(held_out=0),
            quant=replace(recipe.quant, weight_bits=bits, act_bits=bits),
            train=replace(recipe.train, epochs=epochs),
        )

    title = f"ResNet-20, W{bits}A{bits} by SPEQ, on CIFAR-10, from published float weights"
    floating = RECIPES["cifar10-resnet20-float"]
    return Entry(title, "cifar10", floating, low_bit, published="resnet20-12fca82f.th")


ZOO = {
    "resnet8-digits-w2a2": Entry(
        "ResNet-8, W2A2 by SPEQ, on handwritten digits of 8 x 8 pixels: for tests and tutorials",
        "digits",
        RECIPES["digits-float"],
        RECIPES["digits-w2a2-speq"],
    ),
    **{f"resnet8-cifar10-w{b}a{b}": _from_scratch("resnet8", b, epochs) for b, epochs in ((2, 15), (3, 8), (4, 5))},
    "mobilenet-v1-025-cifar10-w4a4": _from_scratch("mobilenet_v1_025", 4, 3, float_epochs=12, precision="fp32"),
    "resnet32-cifar100-w2a2": _from_scratch("resnet32", 2, 4, float_epochs=15, data="cifar100"),
    **{f"resnet20-cifar10-w{bits}a{bits}": _resnet20(bits, epochs) for bits, epochs in ((2, 6), (3, 3), (4, 2))},
}
ZOO["resnet8-cifar10-w2-any"] = _any_precision(
    ZOO["resnet8-cifar10-w2a2"], "cifar10-resnet8-w2-joint-bits", (2, 3, 4, 5, 6, 7, 8)
)


def make(name: str, work: Path, root: Path | None) -> dict[str, Any]:
    """Train, pack, and write file and card; return the card."""
    entry = ZOO[name]
    start, plain = _float(entry, work, root)
    base = _rooted(entry.low_bit(), root)
    base = replace(base, network=replace(base.network, weights=start))
    results = {seed: _trained(base.with_seed(seed), work / f"{base.name}-seed{seed}") for seed in entry.seeds}
    folder = work / f"{base.name}-seed{entry.seeds[0]}"
    path = ZOO_FOLDER / f"{name}.packed"
    report = export_source(folder, "packed", path)
    rows = evaluate_source(folder, root=root, act_bits=entry.widths) if entry.widths else []
    facts = json.loads((folder / "data.json").read_text())
    environment = json.loads((folder / ENVIRONMENT).read_text())[-1]
    card = {
        "name": name,
        "title": entry.title,
        "network": {
            "call": "spequant.models:make_network",
            "arguments": {
                "name": base.network.name,
                "classes": facts["classes"],
                "in_channels": facts["shape"][0],
                "size": facts["shape"][-1],
            },
        },
        "weight_bits": base.quant.weight_bits,
        "act_bits": base.quant.act_bits,
        "bytes": path.stat().st_size,
        "float_bytes": report.exported.float_size,
        "test_accuracy": {str(seed): result["test_accuracy"] for seed, result in results.items()},
        "accuracy_at": {str(row["act_bits"]): row["accuracy"] for row in rows},
        "seed": entry.seeds[0],
        "float_test_accuracy": plain["test_accuracy"],
        "test_images": report.images,
        "recipe": base.name,
        "epochs": {"float": plain["epochs"], "low-bit": base.train.epochs},
        "hours": round((plain["seconds"] + results[entry.seeds[0]]["seconds"]) / 3600, 3),
        "command": f"python tools/make_zoo.py {name}",
        "commit": environment["commit"],
        "processor": environment["device"],
        "torch": environment["torch"],
        "date": date.today().isoformat(),
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "licence": "Apache-2.0" if entry.published is None else f"Apache-2.0; {PUBLISHED}",
        "data": LICENCES[entry.data],
    }
    write_whole(ZOO_FOLDER / f"{name}.json", json.dumps(card, indent=1) + "\n")
    return card


def _float(entry: Entry, work: Path, root: Path | None) -> tuple[Path, dict[str, Any]]:
    """The float weights that a network starts from, and their test accuracy, epochs (None: published) and seconds."""
    recipe = _rooted(entry.floating(), root)
    if entry.published is None:
        start = work / recipe.name
        return start, {**_trained(recipe, start), "epochs": recipe.train.epochs}
    folder = os.environ.get("SPEQUANT_DATA") if root is None else root
    if folder is None:
        raise ValueError("root is not set; expected the folder with weights/: --root FOLDER, or SPEQUANT_DATA")
    start = Path(folder) / "weights" / entry.published
    images = Images(replace(recipe, network=replace(recipe.network, weights=start)), torch.device("cpu"))
    accuracy = measure(images.network().eval(), images.test).accuracy
    return start, {"test_accuracy": round(accuracy, 2), "epochs": None, "seconds": 0.0}


def _rooted(recipe: Recipe, root: Path | None) -> Recipe:
    return recipe if root is None else replace(recipe, data=replace(recipe.data, root=root))


def _trained(recipe: Recipe, folder: Path) -> dict[str, Any]:
    with Terminal(folder.name) as reporter:
        return run(recipe, folder, reporter, resume=True)


def main() -> None:
    """Make the networks that are named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="+", choices=list(ZOO), metavar="NAME", help=", ".join(ZOO))
    parser.add_argument("--work", type=Path, default=Path("runs/zoo"), help="where the runs lie")
    parser.add_argument("--root", type=Path, help="folder of the data; default: SPEQUANT_DATA")
    settings = parser.parse_args()
    for name in settings.names:
        card = make(name, settings.work, settings.root)
        print(f"zoo/{name}: {card['test_accuracy']}, {card['bytes']:,} bytes")


if __name__ == "__main__":
    main()
