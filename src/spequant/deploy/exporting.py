"""Networks to files, compared with the network before they take their place; and files opened again."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from spequant.deploy.classes import with_classes
from spequant.deploy.compare import compare_answers
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats import Draft, Format, format_named, format_of_file, format_to_write
from spequant.deploy.formats.mixed import Mixed
from spequant.deploy.formats.onnx import CODE_GRAPHS
from spequant.deploy.inputs import ImageBatches, Inputs, checked_preprocessing, with_example
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.outputs import output_count
from spequant.deploy.parity import Parity
from spequant.deploy.weights_once import weights_once
from spequant.deploy.zoo import file_of, network_of, of_zoo
from spequant.functional import without_autocast
from spequant.processes import innermost
from spequant.quantizers import Quantizer


@dataclass
class Exported:
    """What came of an export.

    Attributes:
        path: of the file.
        format: name of its format.
        parity: the comparison with the network; of a packed file every answer is equal, bit for bit.
        size: bytes of all its files; of a C program those of its constants.
        float_size: bytes of the float network's tensors.
        islands: "module: operation", what is computed in float.
        saturating: layers whose sums some processors without VNNI clip.
        batch: samples that the file takes at a time; None: any number.
    """

    path: Path
    format: str
    parity: Parity
    size: int
    float_size: int
    islands: list[str] = field(default_factory=list)
    saturating: list[str] = field(default_factory=list)
    batch: int | None = None

    def __str__(self) -> str:
        times = times_fp32(self.size, self.float_size)
        return f"{self.path} ({self.format}): {self.size:,} bytes, {times}\n{self.parity}"


def export(
    model: nn.Module,
    path: str | Path,
    images: Inputs,
    format: str | None = None,
    *,
    preprocessing: Preprocessing | None = None,
    classes: Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
    check: Callable[[Parity], None] = lambda parity: None,
) -> Exported:
    """Write the prepared and calibrated `model` to `path`, once an engine's answers are the network's.

    Args:
        model: the network, at the precision in use; it stays as it is.
        path: of the file; what is there is replaced by a whole file or not at all.
        images: real inputs, at least one batch: tensors or arrays (batch, ...), each on its own or as (inputs, labels);
            or inputs by name, where the format takes them. uint8 images where `preprocessing` is given.
        format: a name in `spequant.deploy.FORMATS`; None: by the ending of `path`.
        preprocessing: (mean, std) per channel, of images scaled to [0, 1], to be part of the graph; std above 0.
        classes: names of the classes, in the order of the outputs, to keep in the file: `load(path).classes`.
        about: JSON to keep in the file.
        check: is shown the comparison before it is judged.

    Returns:
        The comparison, sizes, and what is computed in float.

    Raises:
        ValueError: an ending of no format, an option that the format lacks, a network without a form in it, another
            number of classes than of outputs, or other answers (`Parity.check`); then no file is left.
        RuntimeError: not calibrated.
        OSError: `path` cannot be written.
        ModuleNotFoundError: the extra `deploy` is not installed.

    Example:
        report = spequant.export(model, "net.onnx", [images])
    """
    form = format_to_write(Path(path), format)
    return _export(form, model, Path(path), images, preprocessing, about, check, classes)[0]


@without_autocast
def _export(
    form: Format,
    model: nn.Module,
    path: Path,
    images: Inputs,
    preprocessing: Preprocessing | None,
    about: Mapping[str, Any] | None,
    check: Callable[[Parity], None],
    classes: Sequence[str] | None = None,
) -> tuple[Exported, Draft]:
    if preprocessing is not None and not form.preprocessing:
        raise ValueError(f"preprocessing is given; a file of the format {form.name} has none")
    preprocessing = None if preprocessing is None else checked_preprocessing(preprocessing)
    form.destinations(path)  # whether there is a place for it, before the work
    model = innermost(model)
    float_size = _float_size(model)
    one, batches = with_example(images, preprocessing)
    with ExitStack() as stack:
        stack.enter_context(weights_once(model))
        count = 0 if classes is None else output_count(model, one)
        draft = form.draft(model, one, preprocessing, with_classes(about, classes, count))
        temporary = stack.enter_context(form.placed(draft, path))
        size = draft.size or sum(file.stat().st_size for file in form.files(temporary))
        start = ENGINES[form.engines[0]] if form.engines else None
        run = None if start is None else start(temporary)
        if draft.program is None or run is None:
            parity = form.answers(model, draft, temporary, run, batches)
        else:
            by_codes = None if form.graphs is None else start
            parity = compare_answers(
                model, draft.program, run, batches, by_codes, preprocessing, form.graphs or CODE_GRAPHS
            )
        parity.choices = True if classes is not None else None
        check(parity)
        if form.engines:
            parity.check(form.engines[0])
    facts = draft.islands, draft.saturating, draft.batch
    return Exported(path, form.name, parity, size, float_size, *facts), draft


def export_onnx(
    model: nn.Module,
    path: str | Path,
    images: ImageBatches,
    *,
    preprocessing: Preprocessing | None = None,
    about: Mapping[str, Any] | None = None,
    check: Callable[[Parity], None] = lambda parity: None,
) -> Parity:
    """`export` to integer ONNX, whatever the ending of `path`; gives the comparison. Arguments and errors as there."""
    return _export(format_named("onnx"), model, Path(path), images, preprocessing, about, check)[0].parity


def export_mixed(
    model: nn.Module,
    path: str | Path,
    images: Inputs,
    *,
    preprocessing: Preprocessing | None = None,
    about: Mapping[str, Any] | None = None,
    check: Callable[[Parity], None] = lambda parity: None,
) -> tuple[Parity, Mixed]:
    """`export` to ONNX with float parts, whatever the ending of `path`; gives the comparison and what is in the graph.
    Arguments and errors as there; images may also be inputs by name, such as a tokenizer's."""
    report, draft = _export(format_named("mixed"), model, Path(path), images, preprocessing, about, check)
    return report.parity, draft.content


def load(path: str | Path, network: nn.Module | None = None) -> Loaded:
    """Open a file of any format, of `export`, `pack`, `export_onnx`, `export_mixed` or the command `spequant export`.

    Args:
        path: of the file; of OpenVINO's two files the .xml. Or "zoo/NAME", a network of the zoo, which needs no
            `network`; `spequant zoo` lists them.
        network: for a packed file, the float network that its weights are of; its own weights are not read. None: what
            the file says of itself can be read, but it does not run.

    Returns:
        The file, to be called on inputs: `load("net.onnx")(images)`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: damaged, of a newer version, not written by this project, or of another network.
    """
    if of_zoo(path):
        path, network = file_of(path), network or network_of(path)
    path = Path(path)
    form = format_of_file(path)
    if network is not None and form.engines:
        raise ValueError(f"network is given; {path} is a file of the format {form.name}, which holds its own")
    return form.open(path, network)


def times_fp32(size: int, float_size: int) -> str:
    """Return how `size` bytes compare with the float network's, in words."""
    if size > float_size:
        return f"{size / float_size:.1f} times as large as in fp32"
    return f"{float_size / size:.1f} times smaller than in fp32"


def _float_size(model: nn.Module) -> int:
    """Bytes of the tensors of the float network in `model`."""
    ranges = tuple(f"{name}." for name, module in model.named_modules() if isinstance(module, Quantizer))
    return sum(t.element_size() * t.numel() for n, t in model.state_dict().items() if not n.startswith(ranges))
