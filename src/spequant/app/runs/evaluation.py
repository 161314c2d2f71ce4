"""The accuracy of a run or an exported file, in any engine and at any activation width."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from math import ceil
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.app.runs.questions import AnswerWindows, QuestionSet, answer_by, score
from spequant.app.runs.reporter import Quiet, Reporter, Track, untracked
from spequant.app.runs.samples import Samples
from spequant.app.runs.sources import Source, TestSet, open_source
from spequant.data import ImageSet
from spequant.deploy.engines import ENGINES
from spequant.deploy.running import TORCH, at_bits, in_engine
from spequant.methods.tasks import AnyTask, Regression
from spequant.train import Evaluation, evaluate

BATCH = 500

LogitsOf = Callable[[Any], Tensor]
"""From uint8 images, or samples as the file takes them, to logits (samples, classes)."""
NO_LABELS = "the .npz holds no labels; expected the array labels, (samples,), next to inputs"


def evaluate_source(
    path: Path,
    *,
    engine: str | None = None,
    act_bits: Sequence[int] = (),
    images: int | None = None,
    root: Path | None = None,
    threads: int | None = None,
    network: str | None = None,
    arrays: Path | None = None,
    reporter: Reporter | None = None,
) -> list[dict[str, Any]]:
    """Measure accuracy, or exact match and F1 of questions, on the test set.

    Args:
        path: a run's folder or an exported file.
        engine: torch or one of `engines.ENGINES`; None: the first of the file's format.
        act_bits: widths for the activations that were trained at the recipe's act_bits; none: as trained.
        images: how many samples of the test set to use; None: all.
        root: the folder of the data set; None: the recipe's.
        threads: threads per operation; None: as many as torch uses.
        network, arrays: as in `open_source`.
        reporter: is told the phases; None: nobody is.

    Returns:
        One row per width: source, recipe, seed, engine, act_bits, figures in per cent, seconds.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: the engine cannot run it, it does not have that width, or it has no test set or no network.
    """
    reporter = reporter or Quiet()
    reporter.phase("loading network and data")
    source = open_source(path, root, network=network, arrays=arrays)
    if source.model is None and not source.loaded.engines:
        raise source.network_needed("evaluate it")
    test = first_samples(source.test_set(root), images)
    engine = next(iter(source.loaded.engines), TORCH) if engine is None else engine
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; expected 1 or more, or all cores (None)")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return [_row(source, test, engine, bits, threads, reporter) for bits in act_bits or (None,)]
    finally:
        torch.set_num_threads(before)


def _row(
    source: Source, test: TestSet, engine: str, bits: int | None, threads: int | None, reporter: Reporter
) -> dict[str, Any]:
    begin = time.perf_counter()
    what = f"{len(test):,} {'questions' if isinstance(test, QuestionSet) else 'samples'}"
    reporter.phase(f"testing {what} in {engine}{'' if bits is None else f' at A{bits}'}")
    if isinstance(test, QuestionSet):
        figures = {**score(test, answer_of(source, engine, bits, threads), reporter.track), "samples": len(test)}
    else:
        task = None if source.recipe is None else source.recipe.chosen_task
        figures = measured(logits_of(source, test, engine, bits, threads), test, task, reporter.track)
    return {
        "source": str(source.path),
        "recipe": source.name,
        "seed": None if source.recipe is None else source.recipe.train.seed,
        "engine": engine,
        "act_bits": source.act_bits if bits is None else bits,
        **figures,
        "seconds": round(time.perf_counter() - begin, 2),
    }


def first_samples(test: Any, count: int | None) -> Any:
    """Return the first `count` samples of a test set, or all if it is None.

    Raises:
        ValueError: `count` is less than 1.
    """
    if count is None:
        return test
    if count < 1:
        raise ValueError(f"images is {count!r}; expected 1 or more, or all (None)")
    return test.first(min(count, len(test))) if isinstance(test, QuestionSet) else test.part(slice(0, count))


def measured(
    logits: LogitsOf, test: ImageSet | Samples, task: AnyTask | None, track: Track = untracked
) -> dict[str, Any]:
    """Figures, loss and samples over the whole of `test`; task: None: classification, or regression of float labels."""
    if task is None and test.labels is not None and test.labels.is_floating_point():
        task = Regression()
    if task is None:
        figures = measure_logits(logits, test, track)
        return {"accuracy": figures.accuracy, "loss": figures.loss, "samples": figures.samples}
    network = nn.Module()
    network.forward = logits  # type: ignore[method-assign]
    figures = evaluate(network, track(_batches(test), ceil(len(test) / BATCH)), task)
    return {**figures.figures, "loss": figures.loss, "samples": figures.samples}


def measure_logits(logits: LogitsOf, test: ImageSet | Samples, track: Track = untracked) -> Evaluation:
    """Return accuracy and loss on `test`.

    Raises:
        ValueError: there are no labels, or labels that are no classes of the logits.
    """
    right, loss = 0, 0.0
    for inputs, labels in track(_batches(test), ceil(len(test) / BATCH)):
        out = only_output(logits(inputs))
        if not isinstance(out, Tensor) or out.dim() != 2:
            shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
            raise ValueError(f"the network gives {shape}; expected (samples, classes), of which accuracy is measured")
        if not 0 <= int(labels.min()) <= int(labels.max()) < out.shape[1]:
            span = f"{int(labels.min())} to {int(labels.max())}"
            raise ValueError(f"labels run from {span}; expected 0 to {out.shape[1] - 1}, classes of the network")
        right += int((out.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(out.double(), labels, reduction="sum"))
    return Evaluation(100 * right / len(test), loss / len(test), len(test))


def _batches(test: ImageSet | Samples) -> Iterator[tuple[Any, Tensor]]:
    """Yield inputs and labels. Raise ValueError: there are no labels."""
    if test.labels is None:
        raise ValueError(NO_LABELS)
    for start in range(0, len(test), BATCH):
        part = slice(start, start + BATCH)
        inputs = test.part(part).images if isinstance(test, Samples) else test.images[part]
        yield inputs, test.labels[part]


def logits_of(
    source: Source, test: ImageSet | Samples, engine: str, bits: int | None, threads: int | None = None
) -> LogitsOf:
    """Return a function that runs `source` in `engine`, with the activations of its recipe's act_bits at `bits`."""
    answer = in_engine(source.loaded, engine, bits, threads, source.trained)
    if source.loaded.preprocessing is not None:
        return answer
    return lambda images: answer(test.normalise(images))


def only_output(out: Any) -> Any:
    """Return the logits of a network that returns tensors by name: `logits`, or its one output.

    Raises:
        ValueError: there are several outputs, none of them called logits.
    """
    if not isinstance(out, Mapping):
        return out
    if "logits" not in out and len(out) > 1:
        raise ValueError(f"the network gives {', '.join(out)}; expected logits, or one output, to measure answers of")
    return out["logits"] if "logits" in out else next(iter(out.values()))


def answer_of(source: Source, engine: str, bits: int | None, threads: int | None = None) -> AnswerWindows:
    """Return a function that answers questions by `source`; arguments and errors as in `logits_of`."""
    if source.loaded.engines:
        return stacked(in_engine(source.loaded, engine, bits, threads))
    if engine != TORCH or source.model is None:
        if engine not in (TORCH, *ENGINES):
            in_engine(source.loaded, engine)
        raise ValueError(f"engine is {engine!r}; a network for questions runs in torch, and exported by --to mixed")
    answer = answer_by(source.model, torch.device("cpu"))

    def at_width(batch: dict[str, Tensor]) -> Tensor:
        with source_at_bits(source, bits):
            return answer(batch)

    return at_width


def stacked(answer: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> AnswerWindows:
    """Join an engine's scores of starts and ends to one tensor, (windows, 2, length)."""
    return lambda batch: torch.stack(list(answer(batch).values()), dim=1)


def source_at_bits(source: Source, bits: int | None) -> AbstractContextManager[None]:
    """Set the activations of the recipe's act_bits to `bits` inside the block, for a run or a packed file."""
    return at_bits(source.model, bits, source.trained)
