"""Accuracy of a run or an exported file in any engine, at any activation width."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from spequant.app.recipes.questions import Answer, QuestionSet, answer_by, score
from spequant.app.recipes.sources import Source, TestSet, open_source
from spequant.data import ImageSet
from spequant.deploy import Program, Twin, at_width, integer_graph, lower, quant_graph
from spequant.deploy.engines import ENGINES, Run, run_in_parts
from spequant.policies import LowBit, precision
from spequant.train import Evaluation

BATCH = 500
OWN = {
    "run": "torch",
    "packed": "torch",
    "onnx": "onnxruntime",
    "mixed": "onnxruntime",
    "qonnx": "qonnx",
    "openvino": "openvino",
}
"""The engine that a source is run in where none is named."""

Logits = Callable[[Tensor], Tensor]
"""uint8 images -> logits"""


def evaluate_source(
    path: Path,
    *,
    engine: str | None = None,
    act_bits: Sequence[int] = (),
    images: int | None = None,
    root: Path | None = None,
    threads: int | None = None,
) -> list[dict[str, Any]]:
    """A row for each of `act_bits`, or one at the trained width: accuracy on the test set, and with what; of questions,
    exact match and F1.

    path: a run's folder or an exported file. engine: torch or one of `engines.ENGINES`. images: the first so many of
    the test set, images or questions, alone. root: of the data set. threads: of one operation.

    FileNotFoundError. ValueError: an engine that cannot run what `path` holds, a width that it does not have.
    """
    source = open_source(path, root)
    test = first_samples(source.test_set(root), images)
    engine = OWN[source.kind] if engine is None else engine
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; expected 1 or more, or all cores (None)")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        return [_row(source, test, engine, bits, threads) for bits in act_bits or (None,)]
    finally:
        torch.set_num_threads(before)


def _row(source: Source, test: TestSet, engine: str, bits: int | None, threads: int | None) -> dict[str, Any]:
    begun = time.perf_counter()
    if isinstance(test, QuestionSet):
        found = {**score(test, answer_of(source, engine, bits, threads)), "samples": len(test)}
    else:
        found = asdict(measure_logits(logits_of(source, test, engine, bits, threads), test))
    return {
        "source": str(source.path),
        "recipe": source.recipe.name,
        "seed": source.recipe.train.seed,
        "engine": engine,
        "act_bits": source.act_bits if bits is None else bits,
        **found,
        "seconds": round(time.perf_counter() - begun, 2),
    }


def first_samples(test: Any, count: int | None) -> Any:
    """The first so many images or questions of a test set. ValueError: fewer than one."""
    if count is None:
        return test
    if count < 1:
        raise ValueError(f"images is {count!r}; expected 1 or more, or all (None)")
    return test.first(min(count, len(test))) if isinstance(test, QuestionSet) else test.part(slice(0, count))


def measure_logits(logits: Logits, test: ImageSet) -> Evaluation:
    """Over the whole of `test`."""
    right, loss = 0, 0.0
    for start in range(0, len(test), BATCH):
        part = slice(start, start + BATCH)
        labels = test.labels[part]
        out = logits(test.images[part])
        right += int((out.argmax(1) == labels).sum())
        loss += float(F.cross_entropy(out.double(), labels, reduction="sum"))
    return Evaluation(100 * right / len(test), loss / len(test), len(test))


def logits_of(source: Source, test: ImageSet, engine: str, bits: int | None, threads: int | None = None) -> Logits:
    """`source` in `engine`, the activations of its recipe's act_bits at `bits`."""
    if engine != "torch" and engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}; expected torch, {', '.join(ENGINES)}")
    if source.kind in ("mixed", "qonnx", "openvino"):
        _check_own(source, engine, bits)
        return _in_engine(ENGINES[engine](source.path, threads), test, source.preprocessing is not None, source.batch)
    if engine == "torch":
        return _in_torch(source, test, bits)
    if source.kind == "onnx" and bits is None and engine != "qonnx":
        return _in_engine(ENGINES[engine](source.path, threads), test, source.preprocessing is not None)
    program = program_of(source, test, bits)
    graph = quant_graph(program) if engine == "qonnx" else integer_graph(program)
    return _in_engine(ENGINES[engine](graph.SerializeToString(), threads), test, False)


def answer_of(source: Source, engine: str, bits: int | None, threads: int | None = None) -> Answer:
    """`source`, a network for questions, in `engine`; arguments and errors as those of `logits_of`."""
    if source.kind == "mixed":
        _check_own(source, engine, bits)
        run = ENGINES[engine](source.path, threads)
        return answer_in(run, source.batch)
    if engine != "torch" or source.model is None:
        raise ValueError(f"engine is {engine!r}; a network for questions runs in torch, and exported by --to mixed")
    answer = answer_by(source.model, torch.device("cpu"))

    def at_width(batch: dict[str, Tensor]) -> Tensor:
        with at_bits(source, bits):
            return answer(batch)

    return at_width


def answer_in(run: Run, batch: int | None) -> Answer:
    """By an engine's `run` of a graph, `batch` windows at a time."""

    def answer(given: dict[str, Tensor]) -> Tensor:
        ends = run_in_parts(run, {name: x.numpy() for name, x in given.items()}, batch)
        return torch.stack([torch.from_numpy(end) for end in ends], dim=1)

    return answer


def _check_own(source: Source, engine: str, bits: int | None) -> None:
    if engine != OWN[source.kind] or bits is not None:
        what = "at one activation width" if bits is not None else f"in {OWN[source.kind]} alone"
        raise ValueError(
            f"{source.path} is a file of --to {source.kind} and runs {what}; give the run, a packed file or one of "
            "--to onnx"
        )


def program_of(source: Source, test: ImageSet, bits: int | None) -> Program:
    """The integer program of a run, a packed file or an integer graph."""
    if source.program is not None:
        return source.program if bits is None else at_width(source.program, bits, source.recipe.quant.act_bits)
    assert source.model is not None
    with at_bits(source, bits):
        return lower(source.model, test.normalise(test.images[:1]))


def at_bits(source: Source, bits: int | None) -> AbstractContextManager[None]:
    """Inside, the network of a run or a packed file has the activations of its recipe's act_bits at `bits`."""
    if bits is None or source.model is None:
        return nullcontext()
    return precision(source.model, LowBit(bits, source.recipe.quant.act_bits))


def _in_torch(source: Source, test: ImageSet, bits: int | None) -> Logits:
    model = Twin(program_of(source, test, bits)) if source.model is None else source.model

    def logits(images: Tensor) -> Tensor:
        with torch.no_grad(), at_bits(source, bits):
            return model(test.normalise(images))

    return logits


def _in_engine(run: Run, test: ImageSet, takes_images: bool, batch: int | None = None) -> Logits:
    def logits(images: Tensor) -> Tensor:
        given = images if takes_images else test.normalise(images)
        return torch.from_numpy(run_in_parts(run, {"input": given.numpy()}, batch)[0])

    return logits
