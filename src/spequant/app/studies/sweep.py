"""The command `sweep`: recipes with several seeds, some runs at the same time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spequant.app.studies.compare import Compare, print_comparison
from spequant.app.studies.side_by_side import Job, all_finished, side_by_side
from spequant.comparison import students_t


@dataclass(frozen=True)
class Sweep:
    """Train recipes with several seeds, some runs at the same time, and compare them.

    Fields of the recipes are given as for `train` and hold for every run. The same command again keeps finished runs
    and goes on with interrupted ones.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    at_once: int = 2
    """number of runs at the same time; the CPU's threads are divided among them"""
    out: Path = Path("runs")
    """the parent of the runs' folders"""


def run_sweep(jobs: Sequence[Job], at_once: int) -> None:
    """Carry out `jobs`, `at_once` at the same time, then print the comparison of the finished ones.

    Raises:
        ValueError: there are no jobs, or two would be in one folder.
        ChildProcessError: some did not finish; the others did.
        KeyboardInterrupt: see `side_by_side`.
    """
    if not jobs:
        raise ValueError("seeds is empty; expected some, e.g. --seeds 0 1 2")
    folders = [job.folder for job in jobs]
    duplicates = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if duplicates:
        raise ValueError(
            f"two runs would be in {', '.join(duplicates)}; give seeds and recipes once, and no --name to several"
        )
    if len(jobs) > len({job.recipe for job in jobs}) > 1:
        students_t()  # which the comparison needs at the end
    codes = side_by_side(jobs, at_once)
    order = [job.recipe for job in jobs]  # the others are compared with the first recipe, if one of its runs finished
    done = [job for job, code in zip(jobs, codes, strict=True) if code == 0]
    done.sort(key=lambda job: order.index(job.recipe))
    if done:
        print_comparison(Compare(tuple(job.folder for job in done)))
    all_finished(jobs, codes)
