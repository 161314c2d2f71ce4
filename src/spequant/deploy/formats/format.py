"""What a format is: a name, an ending, what it can hold, how its files are written and opened.

A new format is a subclass in a file of its own and one line in `formats/__init__.py`: of `ProgramFormat` where it is
written from a program, operation by operation, with an engine in `engines.py` that runs it. Lowering, comparing and
placing the file whole are the work of `exporting.py`, the same for all.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from spequant.deploy.checks import Refused
from spequant.deploy.code_graphs import CodeGraphs
from spequant.deploy.engines import Run
from spequant.deploy.loaded import Loaded, Preprocessing
from spequant.deploy.lowering import lower
from spequant.deploy.operations import Operation
from spequant.deploy.parity import Parity, ParityBatch
from spequant.deploy.program import Program
from spequant.files import destination, destination_folder, placed


@dataclass
class Draft:
    """What is about to be written.

    content: what `Format.write` puts into the file. program: what an engine's codes are compared with; None: there is
    none. islands: "module: operation" of what is computed in float. saturating: layers whose sums some processors
    without VNNI clip. batch: samples that the file takes at a time; None: any number. size: bytes that the network
    takes where it is used; None: those of the files.
    """

    content: Any
    program: Program | None = None
    islands: list[str] = field(default_factory=list)
    saturating: list[str] = field(default_factory=list)
    batch: int | None = None
    size: int | None = None


class Format(ABC):
    """One kind of file."""

    name: ClassVar[str]
    """what `--to` and `format=` call it"""
    help: ClassVar[str]
    """one line"""
    suffix: ClassVar[str]
    """of a file that is named after its source, "model" + suffix"""
    extension: ClassVar[str | None]
    """that every file of it has, by which it is known again; None: any that no other format has"""
    engines: ClassVar[tuple[str, ...]] = ()
    """names in `engines.ENGINES` that run its files as they are; the first verifies them. None: torch runs them"""
    runs_in: ClassVar[str]
    """in words, for the table of formats"""
    preprocessing: ClassVar[bool] = False
    """whether its files may take uint8 images"""
    tokens: ClassVar[bool] = False
    """whether it holds networks on tokens, or of inputs by name"""
    any_width: ClassVar[bool] = False
    """whether its files run at other activation widths than they were written at"""
    graphs: ClassVar[CodeGraphs | None] = None
    """where its engine computes on stored codes, which are compared one by one"""
    folder: ClassVar[bool] = False
    """whether it is a folder of files"""
    images: ClassVar[int | None] = None
    """images of a test set that its files are verified on; None: all"""

    def files(self, path: Path) -> tuple[Path, ...]:
        """All files that `path` stands for."""
        return (path,)

    def destinations(self, path: Path) -> tuple[Path, ...]:
        """Where its files will be. OSError: nothing can be written there."""
        return tuple((destination_folder if self.folder else destination)(file) for file in self.files(path))

    @abstractmethod
    def draft(
        self, model: nn.Module, example: Any, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None
    ) -> Draft:
        """What to write of the prepared and calibrated `model`. ValueError: it has no form here."""

    @contextmanager
    def placed(self, draft: Draft, path: Path) -> Iterator[Path]:
        """Inside, the whole file under a temporary name; at the end it takes the place of `path`."""
        with placed(path) as temporary:
            self.write(draft, temporary)
            yield temporary

    def write(self, draft: Draft, path: Path) -> None:
        """Write `draft` to the one file `path`; a format of several files has its own `placed`."""
        raise TypeError(f"{type(self).__name__} writes no file; define `write` or `placed`")

    def answers(
        self, model: nn.Module, draft: Draft, path: Path, run: Run | None, batches: Iterable[ParityBatch]
    ) -> Parity:
        """The network's answers and those of the written file; a format without a program has its own."""
        raise TypeError(f"{type(self).__name__} drafts no program and compares no answers; define `answers`")

    def recognised(self, path: Path) -> bool:
        """Whether `path`, which has its extension, is one of its files. ValueError: of no format, or damaged."""
        return True

    def stored(self, path: Path) -> dict[str, int]:
        """How many numbers of each type a file holds, e.g. {"int8": 9408}. Empty: the format does not say."""
        return {}

    @abstractmethod
    def open(self, path: Path, network: nn.Module | None) -> Loaded:
        """ValueError: damaged, of a newer version, or not written by this project."""


class ProgramFormat(Format):
    """A format that a program is written in. writers: for each operation; refused: operations that it cannot hold.
    whole_numbers: whether what is float in a program is whole numbers of more bits in a file."""

    writers: ClassVar[Mapping[type[Operation], Callable[[Any, Any], Any]]]
    refused: ClassVar[tuple[type[Operation], ...]] = ()
    whole_numbers: ClassVar[bool] = False

    def draft(
        self, model: nn.Module, example: Any, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None
    ) -> Draft:
        if isinstance(example, Mapping):
            raise ValueError(
                f"images have names; a file of the format {self.name} has one input: give it on its own, or export to "
                "mixed"
            )
        try:
            program = lower(model, example)
        except Refused:
            raise
        except ValueError as error:
            raise ValueError(
                f"{error}. `--to mixed` writes ONNX whose linear layers compute on integers and whose other parts stay "
                "float"
            ) from error
        for op in program.ops:
            if not self.holds(op):
                raise ValueError(f"{op.name}: the format {self.name} has no {op.WORD}")
        content = self.content(program, preprocessing, about)
        return Draft(content, program, program.islands(), program.saturating())

    def holds(self, op: Operation) -> bool:
        """Whether it has a form for `op`."""
        return type(op) in self.writers and not isinstance(op, self.refused)

    def faults(self, program: Program) -> list[tuple[str, str]]:
        """(name, why not) of each operation of a kind that it has a form for, but which itself has none."""
        refusals = []
        for op in program.weighted:
            try:
                _ = op.integers
            except ValueError as error:
                refusals.append((op.name, str(error).removeprefix(f"{op.name}: ")))
        return refusals

    @abstractmethod
    def content(self, program: Program, preprocessing: Preprocessing | None, about: Mapping[str, Any] | None) -> Any:
        """What `write` puts into the file."""
