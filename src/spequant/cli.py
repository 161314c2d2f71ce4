"""The command `spequant`: parses and calls."""

import difflib
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

try:
    import tyro
    from rich.table import Table
except ModuleNotFoundError as error:  # the extra is not installed
    raise SystemExit(f"the command line needs {error.name}: pip install 'spequant[all]'") from None

from spequant.recipes import RECIPES, Recipe, evaluate_run, run
from spequant.terminal import Terminal, print_table

USAGE = """usage: spequant COMMAND [ARGUMENTS]

  recipes                       the recipes by name
  train RECIPE [--FIELD VALUE]  train; `spequant train RECIPE --help` lists every field
  evaluate RUN                  accuracy of a finished run on its test set
  demo                          float, Retrain and SPEQ on handwritten digits, a table
  ladder [--help]               what each step down in bits costs, W8A8 to W2A2
  compare RUN RUN ...           mean, deviation and paired difference of finished runs
"""


def nearest(word: str, known: Sequence[str]) -> str:
    """A hint on a misspelt word."""
    close = difflib.get_close_matches(word, known, n=3, cutoff=0.3)
    return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(known)}"


def recipes(args: list[str]) -> None:
    table = Table("recipe", "what it is")
    for name, make in RECIPES.items():
        table.add_row(name, " ".join((make.__doc__ or "").split()))
    print_table(table)


def train(args: list[str]) -> None:
    if not args or args[0] not in RECIPES:
        given = args[0] if args else ""
        raise ValueError(f"recipe is {given!r}; {nearest(given, list(RECIPES))} (spequant recipes lists them)")
    out: Path | None = None
    if "--out" in args:
        at = args.index("--out")
        out = Path(args[at + 1]) if at + 1 < len(args) else None
        del args[at : at + 2]
    recipe: Recipe = tyro.cli(
        Recipe, default=RECIPES[args[0]](), args=args[1:], prog=f"spequant train {args[0]} [--out FOLDER]"
    )
    folder = out or Path("runs") / (recipe.name if recipe.train.seed == 0 else f"{recipe.name}-seed{recipe.train.seed}")
    with Terminal(recipe.name) as reporter:
        result = run(recipe, folder, reporter)
    print(
        f"test accuracy {result['test_accuracy']:.2f} %  weights {result['weight_bytes'] / 1024:.1f} KiB  -> {folder}"
    )


def evaluate(args: list[str]) -> None:
    if len(args) != 1:
        raise ValueError("evaluate takes one folder, that of a finished run")
    result = evaluate_run(Path(args[0]))
    print("{recipe}  accuracy {accuracy:.2f} %  loss {loss:.4f}  images {samples}".format(**result))


def demo(args: list[str]) -> None:
    from spequant.studies.demo import Demo, run_demo

    run_demo(tyro.cli(Demo, args=args, prog="spequant demo"))


def ladder(args: list[str]) -> None:
    from spequant.studies.ladder import Ladder, run_ladder

    run_ladder(tyro.cli(Ladder, args=args, prog="spequant ladder"))


def compare(args: list[str]) -> None:
    from spequant.studies.compare import Compare, report

    print_table(report(tyro.cli(Compare, args=args, prog="spequant compare")))


COMMANDS: dict[str, Callable[[list[str]], None]] = {
    f.__name__: f for f in (recipes, train, evaluate, demo, ladder, compare)
}


def main(argv: Sequence[str] | None = None) -> None:
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return
    if args[0] not in COMMANDS:
        raise SystemExit(f"spequant: command {args[0]!r}: {nearest(args[0], list(COMMANDS))}")
    try:
        COMMANDS[args[0]](args[1:])
    except (ValueError, OSError, FloatingPointError) as error:
        raise SystemExit(f"spequant {args[0]}: {error}") from None


if __name__ == "__main__":
    main()
