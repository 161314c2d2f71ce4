"""The commands: name, line of help, settings, function. From this table: usage, help, completion and dispatch."""

import pkgutil
import shutil
import textwrap
from dataclasses import dataclass
from typing import Any, Literal

HELP = {"-h", "--help"}
"""words that ask for help"""


@dataclass(frozen=True)
class Command:
    """A command.

    Args:
        name: one word, or two.
        words: what follows the name, for the usage.
        about: what it does, one line.
        kind: where the class of its settings is, below `spequant.app.commands`.
        call: where its function is, below `spequant.app`.
        of: what its first words name. None: nothing, the function takes the settings; otherwise it takes all words.
    """

    name: str
    words: str
    about: str
    kind: str
    call: str
    of: Literal["recipe", "recipes", "study"] | None = None

    @property
    def settings(self) -> type:
        return pkgutil.resolve_name(f"spequant.app.commands.{self.kind}")

    @property
    def function(self) -> Any:
        """Importing it imports torch."""
        return pkgutil.resolve_name(f"spequant.app.{self.call}")

    @property
    def prog(self) -> str:
        """What its usage calls it."""
        return f"spequant {self.name} {self.words.partition(' [')[0].partition(' --')[0] if self.of else ''}".strip()


COMMANDS = {
    command.name: command
    for command in (
        Command(
            "recipes",
            "[NAME]",
            "the recipes by name; every field of one, as JSON",
            "training:Recipes",
            "commands.guide:print_recipes",
        ),
        Command(
            "train",
            "RECIPE [--FIELD VALUE]",
            "train; --resume goes on where a run stopped, --dry-run: what it would take",
            "training:Train",
            "train:train",
            "recipe",
        ),
        Command(
            "sweep",
            "RECIPE ... --seeds 0 1",
            "recipes with several seeds, runs side by side, then compared",
            "training:Sweep",
            "studies.sweep:sweep",
            "recipes",
        ),
        Command("runs", "[FOLDER]", "runs with state, recipe and accuracy", "training:Runs", "train:runs"),
        Command(
            "layers",
            "RUN",
            "clipping, levels in use and codes that change, by layer and epoch; a picture",
            "studies:LayersSettings",
            "studies.layers:show_layers",
        ),
        Command(
            "evaluate",
            "RUN|FILE",
            "accuracy on the test set; --engines onnxruntime ..., --act-bits 2 3 4",
            "files:Evaluate",
            "exports:print_evaluation",
        ),
        Command(
            "predict",
            "RUN|FILE IMAGES...",
            "the most probable classes of image files, folders and patterns; --top 5, --csv FILE",
            "files:Predict",
            "predict:print_predictions",
        ),
        Command(
            "export",
            "RUN --to FORMAT",
            "a file to ship, verified against the run",
            "files:Export",
            "exports:print_export",
        ),
        Command(
            "inspect",
            "RUN|FILE",
            "bits, ranges, bytes and operations layer by layer, against fp32",
            "files:Inspect",
            "exports:print_inspection",
        ),
        Command(
            "bench train",
            "",
            "time of a training step against float's, compiled and eager",
            "bench:BenchTrain",
            "bench.report:print_bench_train",
        ),
        Command(
            "bench infer",
            "[RUN|FILE]",
            "time in onnxruntime and OpenVINO against fp32",
            "bench:Infer",
            "bench.report:print_bench_infer",
        ),
        Command(
            "demo",
            "",
            "float, Retrain and SPEQ on handwritten digits, a table",
            "training:Demo",
            "studies.demo:run_demo",
        ),
        Command(
            "ladder",
            "[RECIPE]",
            "what each step down in bits costs, W8A8 to W2A2",
            "training:Ladder",
            "studies.ladder:ladder",
            "recipe",
        ),
        Command(
            "soft-labels",
            "RUN|RECIPE [--FIELD VALUE]",
            "a teacher's answers to the crops of training, written once; --slots 8, --top 10",
            "training:SoftLabels",
            "soft_labels:soft_labels",
            "recipe",
        ),
        Command(
            "study",
            "NAME [RUN]",
            "the paper's tables and figures, re-run; --resume keeps what is done",
            "studies:Study",
            "studies.study:study",
            "study",
        ),
        Command(
            "compare",
            "RUN RUN ...",
            "mean, deviation and paired difference of finished runs",
            "studies:Compare",
            "studies.compare:print_comparison",
        ),
        Command(
            "fit",
            "RUN|FILE|RECIPE --board NAME",
            "whether it fits a microcontroller as C: bytes of flash and memory, before training too",
            "fit:Fit",
            "fit:print_fit",
        ),
        Command("zoo", "[NAME]", "trained low-bit networks that come with spequant", "zoo:Zoo", "zoo:print_zoo"),
        Command("help", "[COMMAND]", "this, or what a command takes", "shell:Help", "commands.guide:print_guide"),
        Command(
            "version", "", "versions of spequant, torch and Python", "shell:Version", "commands.versions:print_version"
        ),
        Command(
            "completion",
            "SHELL",
            "the completion script for bash, zsh or fish",
            "shell:Completion",
            "commands.completion:print_completion",
        ),
    )
}


def usage(first: str = "") -> str:
    """Return an entry on each command, filled up to the terminal's width; first: of those that begin with this word."""
    chosen = [c for c in COMMANDS.values() if c.name.startswith(first)]
    heads = {f"{c.name} {c.words}".strip(): c.about for c in chosen}
    indent, width = 4 + max(map(len, heads)), shutil.get_terminal_size().columns
    entries = [
        textwrap.fill(f"  {head:<{indent - 4}}  {about}", width, subsequent_indent=" " * indent)
        for head, about in heads.items()
    ]
    end = "`spequant help COMMAND` says what it takes."
    return "\n".join([f"usage: spequant {first or 'COMMAND'} [ARGUMENTS]", "", *entries, "", end])
