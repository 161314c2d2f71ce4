"""Settings of the commands that look at runs and compare them: layers, compare, study."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import FlagCreatePairsOff, Positional, arg

ALL_WIDTHS = (2, 3, 4, 5, 6, 7, 8)


@dataclass(frozen=True)
class LayersSettings:
    """What the layers of a run did: clipping, levels in use, ranges, codes that change; a table and a picture."""

    run: Annotated[Path, Positional, arg(metavar="RUN")]
    """the folder of a run, finished or not, trained with --train.layers-every 1 (or more)"""
    out: Path | None = None
    """the picture, PNG; None: layers.png in the run's folder"""


@dataclass(frozen=True)
class Compare:
    """Compare finished runs: mean, deviation, and the difference to the first arm, paired by seed.

    Runs are one arm if they have the same recipe name and differ only in the seed, and in the run that they start or
    learn from. An arm is named by its recipe and by the fields that tell it from other runs of that recipe.
    """

    runs: Annotated[tuple[Path, ...], Positional, arg(metavar="RUN ...", help_behavior_hint="")]
    """folders of finished runs; the arm of the first run is the one that the others are compared with"""
    metric: str | None = None
    """a figure of the runs: accuracy, f1, mean_iou, mean_absolute_error ... in the test, held_out_accuracy ... on what
    is held out; None: accuracy, F1, IoU or R2"""
    csv: Path | None = None
    """a file for each run's arm, seed and value"""
    latex: Path | None = None
    """a file for the table, for LaTeX's package booktabs"""
    json: Path | None = None
    """a file for all figures as JSON"""
    plot: Path | None = None
    """a file, .png, for the picture: each seed, means with intervals, paired differences"""


@dataclass(frozen=True)
class Study:
    """Settings of the studies. A setting that a study does not read is refused."""

    run: Annotated[Path | None, Positional, arg(metavar="[RUN]")] = None
    """of sensitivity: the folder of a finished low-bit run; None: the recipe's network, trained first"""
    budget: Literal["size", "bit-operations", "flash", "ram"] = "bit-operations"
    """of sensitivity: what is limited in its mixed networks; flash, ram: of the C program, by the planner of fit"""
    trials: int = 30
    """of beyond: the number of trials of each search"""
    sizes: tuple[int, ...] = (2560, 5120, 10240, 20480)
    """of when: numbers of training images; each gets as many steps as the recipe takes on its number of images"""
    widths: tuple[int, ...] = ALL_WIDTHS
    """of table1, any-precision and fig2's soft labels: bits at which networks are measured"""
    smoke: FlagCreatePairsOff[bool] = False
    """two seeds of one epoch on a few made-up images: a test that the study runs, without a result"""
    resume: FlagCreatePairsOff[bool] = False
    """keep finished runs below `out`, go on with interrupted ones"""
    out: Path | None = None
    """the study's folder; None: runs/study-NAME"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """seeds of the runs, one run of each arm per seed"""
    only: tuple[str, ...] = ()
    """of studies that compare arms: patterns of GROUP/ARM; only the arms that match one are trained"""
    recipe: str | None = None
    """the SPEQ recipe that all arms are made from, with its settings of SPEQ; None: cifar10-resnet20-w2a2-speq, and all
    networks of table4 and table5"""
    weights: Path | None = None
    """float weights that the one network starts from; None: the float run that the recipe names, which is trained
    first"""
    epochs: int | None = None
    """epochs of each low-bit run; None: as in the recipe"""
    train_images: int | None = None
    """train only on the first so many images; None: as in the recipe"""
    held_out: int | None = None
    """number of training images that are kept apart for choices; None: as in the recipe"""
    root: Path | None = None
    """folder of the data set; None: SPEQUANT_DATA"""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda or cuda:N"""
    threads: int | None = None
    """threads of torch on the CPU; None: as many as torch chooses"""
    at_once: int = 1
    """number of runs at the same time, each in its own process; the CPU's threads are divided among them"""
