"""The command `sweep`: recipes with several seeds, some runs at the same time."""

from collections.abc import Sequence
from itertools import product, takewhile

import tyro

from spequant.app.commands.studies import Compare
from spequant.app.commands.training import Sweep
from spequant.app.recipes.readiness import check_ready
from spequant.app.studies.compare import print_comparison
from spequant.app.studies.side_by_side import Job, all_finished, side_by_side, threads_each
from spequant.app.terminal import title_of
from spequant.app.train import parsed_train, run_name
from spequant.comparison import students_t


def sweep(words: Sequence[str]) -> None:
    """Carry out `spequant sweep WORDS`: recipes, settings of `Sweep`, and fields of the recipes.

    Raises:
        ValueError: there is no recipe, a field is one that `sweep` sets, or as in `run_sweep`.
    """
    names = list(takewhile(lambda word: not word.startswith("-"), words))
    settings, fields = tyro.cli(
        Sweep, args=words[len(names) :], prog="spequant sweep RECIPE ...", return_unknown_args=True
    )
    if not names:
        raise ValueError("no recipe is given; expected one or more before the options (spequant recipes lists them)")
    options = {field.split("=")[0].replace("_", "-") for field in fields}
    if options & {"--train.seed", "--resume", "--dry-run"}:
        raise ValueError("sweep takes no --train.seed, --resume or --dry-run: it has --seeds, and always resumes")
    at_once = min(settings.at_once, len(names) * len(settings.seeds))
    threads = [] if "--train.threads" in options else threads_each(at_once)
    jobs = []
    for seed, name in product(settings.seeds, names):
        arguments = [*fields, *threads, "--train.seed", str(seed)]
        recipe = parsed_train(name, arguments).recipe
        check_ready(recipe)
        folder = settings.out / run_name(recipe)
        jobs.append(
            Job(name, folder, ("train", name, *arguments, "--out", str(folder), "--resume"), title_of(name, seed))
        )
    run_sweep(jobs, settings.at_once)


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
