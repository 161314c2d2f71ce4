"""A run or a packed file exported, and the export verified before it takes its place."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from spequant.app.recipes.evaluation import BATCH, answer_in, at_bits, first_samples
from spequant.app.recipes.folder import ENVIRONMENT, METRICS, RECIPE, RESULT, STATE
from spequant.app.recipes.images import channels_last
from spequant.app.recipes.questions import EVAL_BATCH, QuestionSet, answer_by, score
from spequant.app.recipes.sources import TestSet, about_run, open_source
from spequant.calibration.batches import run_model
from spequant.data import ImageSet, eval_windows
from spequant.deploy import (
    Parity,
    compare,
    export_mixed,
    export_onnx,
    integer_graph,
    load_packed,
    lower,
    pack,
    quant_graph,
    quantize_biases,
    write_onnx,
    write_openvino,
)
from spequant.deploy.draws import run_without_draws
from spequant.deploy.engines import ENGINES, Run
from spequant.deploy.onnx_export import as_batches
from spequant.deploy.onnx_file import Preprocessing
from spequant.deploy.parity import FEW
from spequant.deploy.program import Program
from spequant.files import destination, placed
from spequant.preparation.placement import unprepare

Target = Literal["packed", "onnx", "mixed", "qonnx", "openvino"]
SUFFIX = {
    "packed": ".packed",
    "onnx": ".onnx",
    "mixed": ".mixed.onnx",
    "qonnx": ".qonnx.onnx",
    "openvino": ".xml",
}
SLOW = 100  # images that qonnx, node by node, is compared on
WINDOWS = 512  # of questions, whose arg-max is compared; exact match and F1 are, on all
POINTS = 0.2  # of exact match and F1, by which an export may differ


@dataclass
class Report:
    """What came of an export. parity: None for packed files, whose logits are equal bit for bit.

    size, float_size: bytes of the file, and of the float network's tensors. islands: "module: operation", what is
    computed in float. saturating: layers whose sums some processors without VNNI clip. batch: images that the file
    takes at a time; None: any number. figures: of questions, {name: (network's, engine's)}, per cent.
    what: images or questions.
    """

    path: Path
    size: int
    float_size: int
    images: int
    parity: Parity | None = None
    islands: list[str] = field(default_factory=list)
    saturating: list[str] = field(default_factory=list)
    batch: int | None = None
    figures: dict[str, tuple[float, float]] = field(default_factory=dict)
    what: str = "images"


def export_source(
    path: Path,
    to: Target,
    out: Path | None = None,
    *,
    act_bits: int | None = None,
    round_biases: bool = False,
    preprocessing: bool = False,
    images: int | None = None,
    root: Path | None = None,
    show: Callable[[Parity, str], None] = lambda parity, engine: None,
) -> Report:
    """Write what `path`, a run's folder or a packed file, holds, and verify it on the test set.

    out: None: in the run's folder, or beside the packed file. act_bits: of the activations of the recipe's act_bits;
    None: as trained. round_biases: `quantize_biases` first, as recipes do at the end of a run, and as is done in any
    case where `act_bits` makes another grid; compared is then the network with these biases. preprocessing: the graph
    takes uint8 images. images: verify on so many alone. show: is given the comparison and the engine's name before they
    are judged.

    ValueError: no integer form, a source or an option that does not fit, or answers that differ: no file is left then.
    """
    source = open_source(path, root)
    if source.model is None:
        raise ValueError(f"{path} is a file of --to {source.kind}; expected a run's folder or a packed file")
    if not source.recipe.quantized:
        raise ValueError(f"{path} is a float run, of {source.recipe.name}; expected a low-bit one")
    if preprocessing and to not in ("onnx", "mixed", "openvino"):
        raise ValueError(f"preprocessing goes into graphs of --to onnx, mixed and openvino, not {to}")
    if source.of_questions and to not in ("packed", "mixed"):
        raise ValueError(f"--to {to} has no form for a network on tokens; expected packed or mixed")
    if source.of_questions and (round_biases or preprocessing):
        what = "round_biases is for integer graphs" if round_biases else "preprocessing is"
        raise ValueError(f"{what} of images; a network for questions takes tokens")
    if to == "packed" and act_bits is not None:
        raise ValueError("act_bits is for graphs: a packed file runs at every width (spequant evaluate --act-bits)")
    out = out or (path / "model" if path.is_dir() else path).with_suffix(SUFFIX[to])
    _check_place(out, to, path)
    test = first_samples(source.test_set(root), images)
    inside = (test.mean, test.std) if preprocessing and isinstance(test, ImageSet) else None
    facts = {**about_run(source.recipe, test, source.model), "act_bits": act_bits, "preprocessing": inside}
    work = _Export(source.model, unprepare(source.model), test, out, facts, inside, show)
    with at_bits(source, act_bits):
        if (act_bits is not None or round_biases) and isinstance(test, ImageSet):
            quantize_biases(source.model, test.normalise(test.images[:1]))
        return getattr(work, to)()


def _check_place(out: Path, to: Target, source: Path) -> None:
    """Before the work: ValueError, a name by which the file would not be known again; OSError, no place for it."""
    ending = "." + SUFFIX[to].rpartition(".")[2]
    own_ending = out.suffix.lower()
    fits = own_ending not in (".onnx", ".xml") if to == "packed" else own_ending == ending
    if not fits:
        expected = "any ending but .onnx and .xml" if to == "packed" else f"one that ends in {ending}"
        raise ValueError(f"out is {str(out)!r}; for --to {to} expected {expected}")
    own = {source.resolve(): "what is exported"} if to != "packed" else {}
    for name in (STATE, RECIPE, METRICS, RESULT, ENVIRONMENT):
        own[(source / name).resolve()] = "a file of the run itself"
    for place in (out, out.with_suffix(".bin")) if to == "openvino" else (out,):
        end = destination(place).resolve()
        if end in own:
            raise ValueError(f"out is {str(out)!r}: {end} is {own[end]}; give another --out")


@dataclass(frozen=True)
class _Export:
    """One export under way; a method for each format."""

    model: nn.Module
    network: nn.Module
    test: TestSet
    out: Path
    facts: dict[str, Any]
    inside: Preprocessing | None
    show: Callable[[Parity, str], None]

    def packed(self) -> Report:
        run_without_draws(self.model, next(self._batches(first_samples(self.test, 1))))
        with placed(self.out) as temporary:
            pack(self.model, temporary, self.facts)
            loaded = channels_last(load_packed(temporary, self.network), torch.device("cpu"))
            for batch in self._batches(self.test):
                with torch.no_grad():
                    pairs = zip(_tensors(run_model(self.model, batch)), _tensors(run_model(loaded, batch)), strict=True)
                for a, b in pairs:
                    if not torch.equal(a, b):
                        raise ValueError(
                            f"{self.out}: {int((a != b).sum())} of {a.numel()} logits differ from the network's"
                        )
            size = temporary.stat().st_size
        what = "questions" if self._asks else "images"
        return Report(self.out, size, self._float_bytes(), len(self.test), what=what)

    def onnx(self) -> Report:
        program = self._program()
        with placed(self.out) as temporary:
            parity = export_onnx(self.model, temporary, self._batches(self.test), **self._options())
            return self._report(parity, program, [temporary])

    def mixed(self) -> Report:
        with placed(self.out) as temporary:
            few = islice(self._batches(self.test), WINDOWS // EVAL_BATCH) if self._asks else self._batches(self.test)
            parity, found = export_mixed(self.model, temporary, few, **self._options())
            figures = self._figures(ENGINES["onnxruntime"](temporary), found.batch)
            size = temporary.stat().st_size
        parts = parity.images, parity, found.islands, parity.saturating, found.batch, figures
        return Report(self.out, size, self._float_bytes(), *parts)

    @property
    def _asks(self) -> bool:
        return isinstance(self.test, QuestionSet)

    def _figures(self, run: Run, batch: int | None) -> dict[str, tuple[float, float]]:
        """Of questions, the network's and the engine's. ValueError: they differ by more than `POINTS`."""
        if not isinstance(self.test, QuestionSet):
            return {}
        own = score(self.test, answer_by(self.model, torch.device("cpu")))
        other = score(self.test, answer_in(run, batch))
        for name, value in own.items():
            if abs(value - other[name]) > max(POINTS, 100 * FEW / len(self.test)):
                raise ValueError(
                    f"onnxruntime's {name} is {other[name]:.2f} %, the network's {value:.2f} %; expected at most "
                    f"{POINTS} points"
                )
        return {name: (value, other[name]) for name, value in own.items()}

    def openvino(self) -> Report:
        program, start = self._program(), ENGINES["openvino"]
        found: list[Parity] = []

        def verify(path: Path) -> None:
            batches = as_batches(self._batches(self.test), self.inside)
            found.append(compare(self.model, program, start(path), batches, start, self.inside))
            self._judge(found[0], "openvino")

        write_openvino(integer_graph(program, preprocessing=self.inside), self.out, self.facts, verify)
        return self._report(found[0], program, [self.out, self.out.with_suffix(".bin")])

    def qonnx(self) -> Report:
        program, few = self._program(), first_samples(self.test, SLOW)
        with placed(self.out) as temporary:
            write_onnx(quant_graph(program, about=self.facts), temporary)
            found = compare(self.model, program, ENGINES["qonnx"](temporary), as_batches(self._batches(few)))
            self._judge(found, "qonnx")
            return self._report(found, program, [temporary])

    def _options(self) -> dict[str, Any]:
        """Of `export_onnx` and `export_mixed`."""
        shown = {"check": lambda parity: self.show(parity, "onnxruntime")}
        return {"preprocessing": self.inside, "about": self.facts, **shown}

    def _judge(self, parity: Parity, engine: str) -> None:
        self.show(parity, engine)
        parity.check(engine)

    def _program(self) -> Program:
        try:
            assert isinstance(self.test, ImageSet)  # of questions no such format is written
            return lower(self.model, self.test.normalise(self.test.images[:1]))
        except ValueError as error:
            raise ValueError(
                f"{error}. `--to mixed` writes ONNX whose linear layers compute on integers and whose other parts stay "
                "float"
            ) from error

    def _batches(self, test: TestSet) -> Iterator[Any]:
        """(images, labels), or a window's inputs by name."""
        if isinstance(test, QuestionSet):
            yield from (batch for _, batch in eval_windows(test.windows, min(EVAL_BATCH, len(test.windows))))
            return
        for start in range(0, len(test), BATCH):
            images, labels = test.images[start : start + BATCH], test.labels[start : start + BATCH]
            yield (test.normalise(images) if self.inside is None else images), labels

    def _float_bytes(self) -> int:
        return sum(t.element_size() * t.numel() for t in self.network.state_dict().values())

    def _report(self, parity: Parity, program: Program, files: list[Path]) -> Report:
        size = sum(file.stat().st_size for file in files)
        parts = parity.images, parity, program.islands(), parity.saturating
        return Report(self.out, size, self._float_bytes(), *parts)


def _tensors(out: Any) -> list[Tensor]:
    """What a network returned, one or by name."""
    return [out] if isinstance(out, Tensor) else list(out.values())
