"""The command `sweep`: recipes with several seeds, some runs at the same time."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from spequant.app.studies.compare import Compare, report, students_t
from spequant.app.studies.side_by_side import Job, all_finished, side_by_side
from spequant.app.terminal import print_table


@dataclass(frozen=True)
class Sweep:
    """Train recipes with several seeds, some runs at the same time, and compare them.

    Fields of the recipes are given as to `train` and hold for every run. What is finished is kept, what was interrupted
    goes on: the same command again.
    """

    seeds: tuple[int, ...] = (0, 1, 2)
    at_once: int = 2
    """runs at the same time; the CPU's threads are divided among them"""
    out: Path = Path("runs")
    """the runs' folders go here"""


def run_sweep(jobs: Sequence[Job], at_once: int) -> None:
    """Carry out `jobs`, printing what they print, then the comparison of all that are finished.

    ChildProcessError: some did not finish; the others did. KeyboardInterrupt: see `side_by_side`.
    """
    if not jobs:
        raise ValueError("seeds is empty; expected some, e.g. --seeds 0 1 2")
    folders = [job.folder for job in jobs]
    twice = sorted({str(folder) for folder in folders if folders.count(folder) > 1})
    if twice:
        raise ValueError(
            f"two runs would be in {', '.join(twice)}; give seeds and recipes once, and no --name to several"
        )
    if len(jobs) > len({job.recipe for job in jobs}) > 1:
        students_t()  # of the differences at the very end
    codes = side_by_side(jobs, at_once)
    arms = [job.recipe for job in jobs]  # the first recipe is what the others are compared with, if it finished at all
    done = [job for job, code in zip(jobs, codes, strict=True) if code == 0]
    done.sort(key=lambda job: arms.index(job.recipe))
    if done:
        print_table(report(Compare(tuple(job.folder for job in done))))
    all_finished(jobs, codes)
