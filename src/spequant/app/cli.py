"""The command `spequant`: parses and calls."""

import os
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product, takewhile
from pathlib import Path
from typing import Annotated

try:
    import tyro
    from rich.table import Table
    from tyro.conf import FlagCreatePairsOff
except ModuleNotFoundError as error:  # the extra is not installed
    raise SystemExit(f"the command line needs {error.name}: pip install 'spequant[all]'") from None

from spequant.app.recipes import RECIPES, Recipe
from spequant.app.recipes.command_line import choices_in_words, parts_chosen, recipe_named
from spequant.app.recipes.serial import to_json
from spequant.app.runs import dry_run, listing, run
from spequant.app.runs.folder import figures, main_figure
from spequant.app.terminal import Terminal, figure_in_words, in_words, print_table, title_of
from spequant.names import nearest
from spequant.processes import rank
from spequant.train import Interrupted

USAGE = """usage: spequant COMMAND [ARGUMENTS]

  recipes [NAME]                the recipes by name; every field of one, as JSON
  train RECIPE [--FIELD VALUE]  train; `spequant train RECIPE --help` lists every field
      --resume                  go on where a run was killed or interrupted; --dry-run: what it would take
  sweep RECIPE ... --seeds 0 1  recipes with several seeds, runs side by side, then compared
  runs [FOLDER]                 runs with state, recipe and accuracy
  layers RUN                    clipping, levels in use and codes that change, by layer and epoch; a picture
  evaluate RUN|FILE             accuracy on the test set; --engines onnxruntime ..., --act-bits 2 3 4
  export RUN --to FORMAT        a packed, onnx, mixed, openvino or qonnx file, verified against the run
  inspect RUN|FILE              bits, ranges, bytes and operations layer by layer, against fp32
  bench train                   time of a training step against float's, compiled and eager
  bench infer [RUN|FILE]        time in onnxruntime and OpenVINO against fp32
  demo                          float, Retrain and SPEQ on handwritten digits, a table
  ladder [RECIPE]               what each step down in bits costs, W8A8 to W2A2
  study NAME [--smoke]          the paper's tables and figures, re-run; --resume keeps what is done
  study sensitivity [RUN]       what each layer costs at few bits, and mixed precision from it
  compare RUN RUN ...           mean, deviation and paired difference of finished runs; --csv, --latex, --json, --plot
"""


HELP = (["-h"], ["--help"])


def recipes(args: list[str]) -> None:
    if args[:1] in HELP:
        print("usage: spequant recipes [NAME]\nwhat `train` and `sweep` take, by name; of NAME every field, as JSON")
        return
    if len(args) > 1:
        raise ValueError(f"recipes takes one name, but was given {' '.join(args)}")
    if args:
        print(to_json(recipe_named(args[0])))
        return
    table = Table("recipe", "what it is")
    for name, make in RECIPES.items():
        table.add_row(name, " ".join((make.__doc__ or "").split()))
    print_table(table)


@dataclass(frozen=True)
class Train:
    """Train a recipe. Under `accelerate launch` or `torchrun` (`-m spequant train ...`): on several processes."""

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: Path | None = None
    """the run's folder; None: runs/NAME, and runs/NAME-seedN for a seed other than 0"""
    resume: FlagCreatePairsOff[bool] = False
    """go on from the last checkpoint of a run that was killed or interrupted"""
    dry_run: FlagCreatePairsOff[bool] = False
    """images, steps, memory and hours, from some steps; nothing is written"""


def parsed_train(name: str, args: Sequence[str]) -> Train:
    """What `train NAME ARGS` asks for."""
    if not name or name.startswith("-"):
        raise ValueError("no recipe is given; expected its name first, e.g. train digits-float (spequant recipes)")
    recipe, args = parts_chosen(recipe_named(name), args)
    about = f"{Train.__doc__}\n\n{choices_in_words(recipe)}"
    return tyro.cli(Train, default=Train(recipe), args=args, prog=f"spequant train {name}", description=about)


def run_name(recipe: Recipe) -> str:
    """Of a run's folder."""
    return recipe.name if recipe.train.seed == 0 else f"{recipe.name}-seed{recipe.train.seed}"


def train(args: list[str]) -> None:
    if args[:1] in HELP:
        print("usage: spequant train RECIPE [--out DIR] [--resume] [--dry-run] [--PART.FIELD VALUE ...]")
        print("spequant recipes lists the recipes; spequant train RECIPE --help its fields")
        return
    settings = parsed_train(args[0] if args else "", args[1:])
    recipe = settings.recipe
    folder = settings.out or Path("runs") / run_name(recipe)
    network = recipe.network
    if recipe.quantized and network.weights is None and not network.pretrained and rank() == 0:
        print("network.weights is not set: low bits start from random weights (--network.weights RUN)", file=sys.stderr)
    title = title_of(folder.name, recipe.train.seed)
    if settings.dry_run:
        with Terminal(title) as reporter:
            estimate = dry_run(recipe, reporter)
        if rank() == 0:
            print(*estimate.lines(), sep="\n")
        return
    try:
        with Terminal(title) as reporter:
            result = run(recipe, folder, reporter, resume=settings.resume)
    except (Interrupted, KeyboardInterrupt) as stopped:
        again = shlex.join(["spequant", "train", *args, *([] if settings.resume else ["--resume"])])
        if rank() == 0:
            done = f"{stopped}; saved in {folder}" if isinstance(stopped, Interrupted) else "interrupted"
            print(f"{done}. To go on: {again}", file=sys.stderr)
        raise SystemExit(130) from None
    if rank() == 0:
        size = result["weight_bytes"] / 1024
        print(f"{in_words(figures(result, 'test_'))}  weights {size:.1f} KiB  -> {folder}")


def sweep(args: list[str]) -> None:
    from spequant.app.studies.side_by_side import Job, threads_each
    from spequant.app.studies.sweep import Sweep, run_sweep

    names = list(takewhile(lambda word: not word.startswith("-"), args))
    settings, fields = tyro.cli(
        Sweep, args=args[len(names) :], prog="spequant sweep RECIPE ...", return_unknown_args=True
    )
    if not names:
        raise ValueError("no recipe is given; expected one or more before the options (spequant recipes lists them)")
    given = {field.split("=")[0].replace("_", "-") for field in fields}
    if given & {"--train.seed", "--resume", "--dry-run"}:
        raise ValueError("sweep takes no --train.seed, --resume or --dry-run: it has --seeds, and always resumes")
    at_once = min(settings.at_once, len(names) * len(settings.seeds))
    threads = [] if "--train.threads" in given else threads_each(at_once)
    jobs = []
    for seed, name in product(settings.seeds, names):
        own = [*fields, *threads, "--train.seed", str(seed)]
        recipe = parsed_train(name, own).recipe
        recipe.check_ready()
        folder = settings.out / run_name(recipe)
        jobs.append(Job(name, folder, ("train", name, *own, "--out", str(folder), "--resume"), title_of(name, seed)))
    run_sweep(jobs, settings.at_once)


def runs(args: list[str]) -> None:
    if args[:1] in HELP:
        print("usage: spequant runs [DIR]\nthe runs below DIR (runs/ by default), and how far they are")
        return
    if len(args) > 1:
        raise ValueError("runs takes one folder at most, the one below which the runs are (runs/ by default)")
    parent = Path(args[0] if args else "runs")
    if not parent.is_dir():
        raise FileNotFoundError(f"{parent} does not exist; expected a folder with runs below it")
    table = Table("run", "recipe", "state", "epoch", "test", "held out", "last started")
    for row in listing(parent):
        numbers = [_main_figure_in_words(figures(row, prefix)) for prefix in ("test_", "held_out_")]
        epoch = f"{row['epoch']}/{row['epochs']}" if "epoch" in row else "-"
        when = time.strftime("%Y-%m-%d %H:%M", time.localtime(row["date"]))
        table.add_row(row["run"], row["recipe"], row["state"], epoch, *numbers, when)
    print_table(table)


def _main_figure_in_words(found: dict[str, float]) -> str:
    if not found:
        return "-"
    name = main_figure(found)
    return figure_in_words(name, found[name])


def layers(args: list[str]) -> None:
    from spequant.app.studies.layers import LayersSettings, show_layers

    show_layers(tyro.cli(LayersSettings, args=args, prog="spequant layers"))


def evaluate(args: list[str]) -> None:
    from spequant.app.exports import Evaluate, print_evaluation
    from spequant.train import keep_freed_memory

    keep_freed_memory()
    print_evaluation(tyro.cli(Evaluate, args=args, prog="spequant evaluate"))


def export(args: list[str]) -> None:
    from spequant.app.exports import Export, print_export
    from spequant.train import keep_freed_memory

    keep_freed_memory()
    print_export(tyro.cli(Export, args=args, prog="spequant export"))


def inspect(args: list[str]) -> None:
    from spequant.app.exports import Inspect, print_inspection

    print_inspection(tyro.cli(Inspect, args=args, prog="spequant inspect"))


def bench(args: list[str]) -> None:
    if args[:1] in HELP:
        print("usage: spequant bench train|infer [--help]")
        return
    if args[:1] == ["train"]:
        from spequant.app.bench.report import BenchTrain, print_bench_train

        print_bench_train(tyro.cli(BenchTrain, args=args[1:], prog="spequant bench train"))
    elif args[:1] == ["infer"]:
        from spequant.app.bench.report import Infer, print_bench_infer

        print_bench_infer(tyro.cli(Infer, args=args[1:], prog="spequant bench infer"))
    else:
        raise ValueError(f"bench measures {args[0] if args else ''!r}; expected train or infer")


def demo(args: list[str]) -> None:
    from spequant.app.studies.demo import Demo, run_demo

    run_demo(tyro.cli(Demo, args=args, prog="spequant demo"))


def ladder(args: list[str]) -> None:
    from spequant.app.studies.ladder import Ladder, ladder_recipe, run_ladder

    named = bool(args) and not args[0].startswith("-")
    recipe, left = parts_chosen(recipe_named(args[0]) if named else ladder_recipe(), args[named:])
    run_ladder(tyro.cli(Ladder, default=Ladder(recipe), args=left, prog="spequant ladder"))


def compare(args: list[str]) -> None:
    from spequant.app.studies.compare import Compare, print_comparison

    print_comparison(tyro.cli(Compare, args=args, prog="spequant compare"))


def study(args: list[str]) -> None:
    from spequant.app.studies.study import STUDIES, Study, run_study

    if not args or args[0].startswith("-"):
        if args[:1] in HELP:
            print("usage: spequant study NAME [--help]\n")
            print(*(f"  {name:<16}{' '.join((s.__doc__ or '').split())}" for name, s in STUDIES.items()), sep="\n")
            return
        raise ValueError(f"no study is named; expected one of {', '.join(STUDIES)}")
    settings = tyro.cli(Study, args=args[1:], prog=f"spequant study {args[0]}", config=(FlagCreatePairsOff,))
    print(f"{args[0]}.md, .csv, .png and .html are in {run_study(args[0], settings)}/")


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    f.__name__: f
    for f in (recipes, train, sweep, runs, layers, evaluate, export, inspect, bench, demo, ladder, study, compare)
}


BARS = ("TQDM_DISABLE", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS")
"""variables by which other packages show no bars of their own, which would fill a log and break a line that moves"""


def main(argv: Sequence[str] | None = None) -> None:
    for name in BARS:
        os.environ.setdefault(name, "1")
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return
    if args[0] not in COMMANDS:
        raise SystemExit(f"spequant: command {args[0]!r}: {nearest(args[0], list(COMMANDS))}")
    try:
        COMMANDS[args[0]](args[1:])
    except (ValueError, OSError, FloatingPointError, ModuleNotFoundError) as error:
        raise SystemExit(f"spequant {args[0]}: {error}") from None
    except (Interrupted, KeyboardInterrupt) as stopped:
        print(f"spequant {args[0]}: {str(stopped) or 'interrupted'}", file=sys.stderr)
        raise SystemExit(130) from None


if __name__ == "__main__":
    main()
