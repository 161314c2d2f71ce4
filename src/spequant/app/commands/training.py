"""Settings of the commands that train: train, sweep, ladder, demo; of soft-labels; and of those that list: recipes,
runs."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import FlagCreatePairsOff, Positional, arg


@dataclass(frozen=True)
class Recipes:
    """List the recipes that `train` and `sweep` take by name, or print one."""

    name: Annotated[str | None, Positional, arg(metavar="[NAME]")] = None
    """a recipe, which is printed as JSON, every field; None: all are listed"""


@dataclass(frozen=True)
class Train:
    """Train a recipe. Under `accelerate launch` or `torchrun` (`-m spequant train ...`): on several processes."""

    out: Path | None = None
    """the run's folder; None: runs/NAME, and runs/NAME-seedN for a seed other than 0"""
    resume: FlagCreatePairsOff[bool] = False
    """go on from the last checkpoint of a run that was killed or interrupted"""
    dry_run: FlagCreatePairsOff[bool] = False
    """images, steps, memory and hours, from some steps; nothing is written"""


@dataclass(frozen=True)
class Sweep:
    """Train recipes with several seeds, some runs at the same time, and compare them.

    Fields of the recipes are given as for `train` and hold for every run. The same command again keeps finished runs
    and goes on with interrupted ones.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds of the runs, one run of each recipe per seed"""
    at_once: int = 2
    """number of runs at the same time; the CPU's threads are divided among them"""
    out: Path = Path("runs")
    """the parent of the runs' folders"""


@dataclass(frozen=True)
class Ladder:
    """Train a network at fewer and fewer bits from one float network, W8A8 to W2A2; the worst layer of each step."""

    out: Path = Path("runs/ladder")
    """one folder per step, ladder.json and ladder.png"""


@dataclass(frozen=True)
class SoftLabels:
    """Write what a float teacher answers to several crops of each training image, for --method.soft-labels FILE.

    The teacher is the float network of a run, or of a recipe (--network.name, --network.weights, --network.pretrained):
    any that has the classes of the data. Data and augmentation are the run's or the recipe's, and have to be those of
    the student; the crops follow from train.seed.
    """

    out: Path = Path("soft-labels.safetensors")
    """the file"""
    slots: int | None = None
    """crops per image, which epochs read in turn; None: 8, or 1 without augmentation"""
    top: int | None = None
    """most probable classes whose probabilities are stored, the rest is spread evenly over the others; None: 10, or all
    if they are fewer"""
    temperature: float = 1.0
    """T of the softmax, the student's method.temperature"""


@dataclass(frozen=True)
class Demo:
    """Handwritten digits: a small float ResNet, then W2A2 from it by Retrain and by SPEQ."""

    out: Path = Path("runs/demo")
    """an empty or new folder, or that of an earlier demo, whose runs are removed first; other files in it stay"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds of the low-bit runs, one run of each method per seed"""
    epochs: int | None = None
    """epochs of each run; None: as in the recipes"""


@dataclass(frozen=True)
class Runs:
    """List the runs below a folder: recipe, state, epoch and figures."""

    folder: Annotated[Path, Positional, arg(metavar="[FOLDER]")] = Path("runs")
    """the folder below which the runs are"""
