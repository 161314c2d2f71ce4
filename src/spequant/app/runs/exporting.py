"""Export of a run or a packed file, verified before the file takes its place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from math import ceil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from spequant.app.runs.evaluation import BATCH, first_samples, source_at_bits, stacked
from spequant.app.runs.folder import ENVIRONMENT, FACTS, METRICS, MODEL_FILE, RECIPE, RESULT
from spequant.app.runs.questions import WINDOWS_AT_ONCE, QuestionSet, answer_by, score
from spequant.app.runs.reporter import Quiet, Reporter
from spequant.app.runs.samples import Samples
from spequant.app.runs.sources import Source, TestSet, example_of, open_source
from spequant.data import ImageSet, eval_windows
from spequant.deploy import FORMATS, Exported, Parity, export, quantize_biases
from spequant.deploy.classes import CLASS_NAMES
from spequant.deploy.formats import Format, check_ending, format_named
from spequant.deploy.parity import FEW_ANSWERS
from spequant.deploy.running import TORCH, in_engine
from spequant.deploy.zoo import of_zoo
from spequant.files import placed

COMPARED_WINDOWS = 512  # windows of questions whose logits are compared; exact match and F1 are compared on all
F1_POINTS = 0.2  # difference in exact match and F1 that is allowed
CHOICES_OF_TASK: dict[str | None, bool | None] = {
    "classification": True,
    "segmentation": True,
    "multi-label": False,
    "regression": False,
}
"""{task of a recipe: whether the largest number is the answer}; of others the comparison itself decides."""


@dataclass
class Report:
    """The result of an export."""

    exported: Exported
    images: int
    """number of samples that it was verified on"""
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)
    """for questions, exact match and F1 of the network and of the engine, in per cent"""
    what: str = "images"
    """what the samples are: images, samples or questions"""


def export_source(
    path: str | Path,
    to: str,
    out: str | Path | None = None,
    *,
    act_bits: int | None = None,
    round_biases: bool = False,
    preprocessing: bool = False,
    images: int | None = None,
    root: Path | None = None,
    network: str | None = None,
    arrays: Path | None = None,
    show: Callable[[Parity, str], None] = lambda parity, engine: None,
    reporter: Reporter | None = None,
) -> Report:
    """Export a run or a packed file, and verify the new file on the test set.

    Args:
        path: the run's folder, the packed file, or zoo/NAME.
        to: a name in `FORMATS`.
        out: the new file; None: model.SUFFIX in the run's folder, or next to the packed file; of zoo/NAME, NAME.SUFFIX
            in the working folder.
        act_bits: width of the activations that were trained at the recipe's act_bits; None: as trained.
        round_biases: whether to call `quantize_biases` first. Recipes do so at the end of a run. It is always done if
            `act_bits` is given, since biases are then on another grid. The file is compared with the rounded network.
        preprocessing: whether the graph takes uint8 images.
        images: number of samples to verify on; None: all.
        root, network, arrays: as in `open_source`.
        show: is called with the comparison and the name of the engine, before the comparison is judged.
        reporter: is told the phases; None: nobody is.

    Raises:
        ValueError: the network has no such form, an option does not fit, or answers differ. No file is left then.
    """
    form, reporter, path = format_named(to), reporter or Quiet(), Path(path)
    reporter.phase("loading network and data")
    source = open_source(path, root, network=network, arrays=arrays)
    if source.model is None:
        raise source.network_needed("export it")
    _check_options(source, form, act_bits, round_biases, preprocessing)
    out = _place(path).with_suffix(form.suffix) if out is None else Path(out)
    _check_place(out, form, path)
    test = first_samples(first_samples(source.test_set(root), images), form.images)
    pixels = (test.mean, test.std) if preprocessing and isinstance(test, ImageSet) else None
    if preprocessing and pixels is None:
        raise ValueError("preprocessing goes into graphs of a recipe's images; arrays hold what the network takes")
    with source_at_bits(source, act_bits):
        example = example_of(source)
        if isinstance(example, dict) and round_biases:
            raise ValueError("round_biases is for integer graphs of images; the network takes tokens")
        if isinstance(example, Tensor) and (act_bits is not None or round_biases):
            quantize_biases(source.model, example)
        facts = {} if source.recipe is None else _facts(test, act_bits, pixels)
        reporter.phase(f"writing {form.name}")
        options = {"preprocessing": pixels, **_options(source, form, facts, show)}
        batches = _verifying(_batches(test, normalised=pixels is None), test, form, reporter)
        if isinstance(test, QuestionSet):
            return _of_questions(source, test, form, out, batches, options, reporter)
        exported = export(source.model, out, batches, to, **options)
    return Report(exported, len(test), what="samples" if isinstance(test, Samples) else "images")


def _place(path: Path) -> Path:
    """Return where a file made of `path` lies, without its ending."""
    if of_zoo(path):
        return Path(path.name)
    return path / "model" if path.is_dir() else path


def _facts(test: TestSet, act_bits: int | None, pixels: Any) -> dict[str, Any]:
    """Return what a file of a recipe's run says of how it was made."""
    images = {"normalisation": (test.mean, test.std)} if isinstance(test, ImageSet) else {}  # for LiteRT's tools
    return {"act_bits": act_bits, "preprocessing": pixels, **images}


def _options(
    source: Source, form: Format, facts: dict[str, Any], show: Callable[[Parity, str], None]
) -> dict[str, Any]:
    """Return arguments of `export`: what the file says of itself, `facts` included, and who is shown the comparison."""

    def check(parity: Parity) -> None:
        parity.choices = CHOICES_OF_TASK.get(source.task, parity.choices)
        show(parity, next(iter(form.engines), TORCH))

    about = {name: value for name, value in source.loaded.about.items() if name != CLASS_NAMES}
    return {"classes": source.loaded.classes, "about": {**about, **facts}, "check": check}


def _of_questions(
    source: Source,
    test: QuestionSet,
    form: Format,
    out: Path,
    batches: Iterator[Any],
    options: dict[str, Any],
    reporter: Reporter,
) -> Report:
    """Export a network for questions; if an engine runs the file, exact match and F1 are compared as well."""
    assert source.model is not None
    few = islice(batches, COMPARED_WINDOWS // WINDOWS_AT_ONCE) if form.engines else batches
    with placed(out) as temporary:
        exported = replace(export(source.model, temporary, few, form.name, **options), path=out)
        figures = {}
        if form.engines:
            reporter.phase(f"testing {len(test):,} questions in torch")
            network = score(test, answer_by(source.model, torch.device("cpu")), reporter.track)
            reporter.phase(f"testing {len(test):,} questions in {form.engines[0]}")
            engine = score(test, stacked(in_engine(form.open(temporary, None))), reporter.track)
            figures = {name: (value, engine[name]) for name, value in network.items()}
        for name, (value, other) in figures.items():
            if abs(value - other) > max(F1_POINTS, 100 * FEW_ANSWERS / len(test)):
                raise ValueError(
                    f"{form.engines[0]}'s {name} is {other:.2f} %, the network's {value:.2f} %; expected at most "
                    f"{F1_POINTS} points"
                )
    images = exported.parity.images if form.engines else len(test)
    return Report(exported, images, figures, "questions")


def _check_options(source: Source, form: Format, act_bits: int | None, round_biases: bool, preprocessing: bool) -> None:
    if source.recipe is not None and not source.recipe.quantized:
        raise ValueError(f"{source.path} is a float run, of {source.name}; expected a low-bit one")
    if preprocessing and not form.preprocessing:
        formats = ", ".join(name for name, other in FORMATS.items() if other.preprocessing)
        raise ValueError(f"preprocessing goes into graphs of --to {formats}, not {form.name}")
    if source.of_questions and not form.tokens:
        formats = " or ".join(name for name, other in FORMATS.items() if other.tokens)
        raise ValueError(f"--to {form.name} has no form for a network on tokens; expected {formats}")
    if source.of_questions and (round_biases or preprocessing):
        what = "round_biases is for integer graphs" if round_biases else "preprocessing is"
        raise ValueError(f"{what} of images; a network for questions takes tokens")
    if not form.engines and act_bits is not None:
        raise ValueError(
            f"act_bits is for graphs: a {form.name} file runs at every width (spequant evaluate --act-bits)"
        )


def _check_place(out: Path, form: Format, source: Path) -> None:
    """Refuse, before the work, a name by which the file could not be loaded, and a place that cannot be written."""
    check_ending(form, out, "out")
    taken = {source.resolve(): "what is exported"} if form.engines else {}
    for name in (MODEL_FILE, RECIPE, METRICS, RESULT, ENVIRONMENT, FACTS):
        taken[(source / name).resolve()] = "a file of the run itself"
    for place in form.destinations(out):
        end = place.resolve()
        if end in taken:
            raise ValueError(f"out is {str(out)!r}: {end} is {taken[end]}; give another --out")


def _batches(test: TestSet, normalised: bool) -> Iterator[Any]:
    """Yield batches: (inputs, labels), inputs, or the inputs of windows by name.

    Args:
        test: the samples.
        normalised: whether images are normalised, as the network takes them, or uint8.
    """
    if isinstance(test, QuestionSet):
        yield from (batch for _, batch in eval_windows(test.windows, min(WINDOWS_AT_ONCE, len(test.windows))))
        return
    for start in range(0, len(test), BATCH):
        part = test.part(slice(start, start + BATCH))
        images: Any = part.images if isinstance(part, Samples) else part.images[:]  # images in files are read by this
        inputs = part.normalise(images) if normalised else images
        yield inputs if part.labels is None or isinstance(inputs, dict) else (inputs, part.labels)


def _verifying(batches: Iterator[Any], test: TestSet, form: Format, reporter: Reporter) -> Iterator[Any]:
    """Yield `batches`; from the second one on the file is there, and is compared with the network."""
    yield from islice(batches, 1)
    what = f"{len(test):,} {'questions' if isinstance(test, QuestionSet) else 'samples'}"
    reporter.phase(f"verifying on {what} in {next(iter(form.engines), TORCH)}")
    size = len(test.windows) / WINDOWS_AT_ONCE if isinstance(test, QuestionSet) else len(test) / BATCH
    yield from reporter.track(batches, max(1, ceil(size) - 1))
