"""A run or a packed file exported, and the export verified before it takes its place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from spequant.app.runs.evaluation import BATCH, at_bits, first_samples, stacked
from spequant.app.runs.folder import ENVIRONMENT, METRICS, RECIPE, RESULT, STATE
from spequant.app.runs.questions import EVAL_BATCH, QuestionSet, answer_by, score
from spequant.app.runs.sources import Samples, Source, TestSet, open_source
from spequant.data import ImageSet, eval_windows
from spequant.deploy import FORMATS, Exported, Parity, export, quantize_biases
from spequant.deploy.formats import Format, check_ending, format_named
from spequant.deploy.parity import FEW
from spequant.deploy.running import TORCH, in_engine
from spequant.files import destination, placed

WINDOWS = 512  # of questions, whose arg-max is compared; exact match and F1 are, on all
POINTS = 0.2  # of exact match and F1, by which an export may differ


@dataclass
class Report:
    """What came of an export. figures: of questions, {name: (network's, engine's)}, per cent. what: images, samples or
    questions, `images` of them."""

    exported: Exported
    images: int
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)
    what: str = "images"


def export_source(
    path: Path,
    to: str,
    out: Path | None = None,
    *,
    act_bits: int | None = None,
    round_biases: bool = False,
    preprocessing: bool = False,
    images: int | None = None,
    root: Path | None = None,
    network: str | None = None,
    data: Path | None = None,
    show: Callable[[Parity, str], None] = lambda parity, engine: None,
) -> Report:
    """Write what `path`, a run's folder or a packed file, holds, and verify it on the test set.

    Args:
        path: the folder or the file.
        to: a name in `FORMATS`.
        out: None: in the run's folder, or next to the packed file.
        act_bits: of the activations of the recipe's act_bits; None: as trained.
        round_biases: `quantize_biases` first, as recipes do at the end of a run, and as is done in any case where
            `act_bits` makes another grid; compared is then the network with these biases.
        preprocessing: the graph takes uint8 images.
        images: verify only on so many.
        root, network, data: as `open_source`'s.
        show: is given the comparison and the engine's name before they are judged.

    Raises:
        ValueError: no integer form, a source or an option that does not fit, or answers that differ: no file is left
            then.
    """
    form = format_named(to)
    source = open_source(path, root, network=network, data=data)
    if source.model is None:
        raise source.network_needed("export it")
    _check_options(source, form, act_bits, round_biases, preprocessing)
    out = out or (path / "model" if path.is_dir() else path).with_suffix(form.suffix)
    _check_place(out, form, path)
    test = first_samples(first_samples(source.test_set(root), images), form.images)
    inside = (test.mean, test.std) if preprocessing and isinstance(test, ImageSet) else None
    if preprocessing and inside is None:
        raise ValueError("preprocessing goes into graphs of a recipe's images; data holds what the network takes")
    with at_bits(source, act_bits):
        if act_bits is not None or round_biases:
            quantize_biases(source.model, test.normalise(test.images[:1]))
        batches, facts = _batches(test, normalised=inside is None), {"act_bits": act_bits, "preprocessing": inside}
        options: dict[str, Any] = {
            "preprocessing": inside,
            "about": {**source.loaded.about, **({} if source.recipe is None else facts)},
            "check": lambda parity: show(parity, next(iter(form.engines), TORCH)),
        }
        if isinstance(test, QuestionSet):
            return _of_questions(source, test, form, out, batches, options)
        exported = export(source.model, out, batches, to, **options)
    return Report(exported, len(test), what="samples" if isinstance(test, Samples) else "images")


def _of_questions(
    source: Source, test: QuestionSet, form: Format, out: Path, batches: Iterator[Any], options: dict[str, Any]
) -> Report:
    """The same, exact match and F1 compared too where an engine answers."""
    assert source.model is not None
    few = islice(batches, WINDOWS // EVAL_BATCH) if form.engines else batches
    with placed(out) as temporary:
        exported = replace(export(source.model, temporary, few, form.name, **options), path=out)
        figures = {}
        if form.engines:
            network = score(test, answer_by(source.model, torch.device("cpu")))
            engine = score(test, stacked(in_engine(form.open(temporary, None))))
            figures = {name: (value, engine[name]) for name, value in network.items()}
        for name, (value, other) in figures.items():
            if abs(value - other) > max(POINTS, 100 * FEW / len(test)):
                raise ValueError(
                    f"{form.engines[0]}'s {name} is {other:.2f} %, the network's {value:.2f} %; expected at most "
                    f"{POINTS} points"
                )
    images = exported.parity.images if form.engines else len(test)
    return Report(exported, images, figures, "questions")


def _check_options(source: Source, form: Format, act_bits: int | None, round_biases: bool, preprocessing: bool) -> None:
    if source.recipe is not None and not source.recipe.quantized:
        raise ValueError(f"{source.path} is a float run, of {source.name}; expected a low-bit one")
    if preprocessing and not form.preprocessing:
        with_it = ", ".join(name for name, other in FORMATS.items() if other.preprocessing)
        raise ValueError(f"preprocessing goes into graphs of --to {with_it}, not {form.name}")
    if source.of_questions and not form.tokens:
        with_it = " or ".join(name for name, other in FORMATS.items() if other.tokens)
        raise ValueError(f"--to {form.name} has no form for a network on tokens; expected {with_it}")
    if source.of_questions and (round_biases or preprocessing):
        what = "round_biases is for integer graphs" if round_biases else "preprocessing is"
        raise ValueError(f"{what} of images; a network for questions takes tokens")
    if not form.engines and act_bits is not None:
        raise ValueError(
            f"act_bits is for graphs: a {form.name} file runs at every width (spequant evaluate --act-bits)"
        )


def _check_place(out: Path, form: Format, source: Path) -> None:
    """Before the work: ValueError, a name by which the file would not be known again; OSError, no place for it."""
    check_ending(form, out, "out")
    taken = {source.resolve(): "what is exported"} if form.engines else {}
    for name in (STATE, RECIPE, METRICS, RESULT, ENVIRONMENT):
        taken[(source / name).resolve()] = "a file of the run itself"
    for place in form.files(out):
        end = destination(place).resolve()
        if end in taken:
            raise ValueError(f"out is {str(out)!r}: {end} is {taken[end]}; give another --out")


def _batches(test: TestSet, normalised: bool) -> Iterator[Any]:
    """(inputs, labels), or a window's inputs by name. normalised: whether images are as the network takes them."""
    if isinstance(test, QuestionSet):
        yield from (batch for _, batch in eval_windows(test.windows, min(EVAL_BATCH, len(test.windows))))
        return
    for start in range(0, len(test), BATCH):
        part = test.part(slice(start, start + BATCH))
        images: Any = part.images
        inputs = part.normalise(images) if normalised else images
        yield inputs if part.labels is None else (inputs, part.labels)
