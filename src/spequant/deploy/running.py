"""Opened files in any engine that can compute what they hold, at any activation width."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from spequant.deploy.engines import ENGINES, Run
from spequant.deploy.formats.c import c_graph
from spequant.deploy.formats.onnx import integer_graph
from spequant.deploy.formats.openvino import openvino_graph
from spequant.deploy.formats.qonnx import quant_graph
from spequant.deploy.formats.tflite import tflite_graph
from spequant.deploy.loaded import Loaded, outputs_of
from spequant.deploy.lowering import lower
from spequant.deploy.program import Program
from spequant.deploy.twin import Twin
from spequant.deploy.width import at_width
from spequant.policies import LowBit, precision

TORCH = "torch"
Answer = Callable[[Any], Any]
"""From inputs, as the file takes them, to outputs; see `Loaded`."""


def in_engine(
    loaded: Loaded,
    engine: str | None = None,
    act_bits: int | None = None,
    threads: int | None = None,
    trained: int | None = None,
) -> Answer:
    """What computes the outputs of `loaded`, called as `loaded` is.

    Args:
        loaded: an opened file. One with a network or a program runs in torch and in every engine; others only in the
            engines of their format, at the width that they were written at.
        engine: "torch" or a name in `engines.ENGINES`; None: the first of the file's own.
        act_bits: width of the activations that were trained at `trained` bits; None: as in the file.
        threads: of one operation; None: all cores.
        trained: None: the fewest bits that there are.

    Raises:
        ValueError: an engine that cannot run the file, a width that it does not have.
    """
    engine = engine or next(iter(loaded.engines), TORCH)
    if engine not in (TORCH, *ENGINES):
        raise ValueError(f"engine is {engine!r}; expected {TORCH}, {', '.join(ENGINES)}")
    if engine in loaded.engines and act_bits is None:
        run = ENGINES[engine](loaded.path, threads)
        return lambda x: outputs_of(loaded, run, x)
    if loaded.model is None and loaded.program is None:
        raise _only_as_it_is(loaded, act_bits)
    if engine == TORCH and loaded.model is not None:
        return lambda x: _at_width(loaded, act_bits, trained, lambda: loaded.of_model(x))
    return _Lowered(loaded, engine, act_bits, threads, trained)


class _Lowered:
    """A network or a program that an engine is given a graph of, once the shape of its inputs is there."""

    def __init__(self, loaded: Loaded, engine: str, act_bits: int | None, threads: int | None, trained: int | None):
        self.loaded, self.engine, self.act_bits = loaded, engine, act_bits
        self.threads, self.trained = threads, trained
        self.run: Callable[[Tensor], Any] | None = None

    def __call__(self, x: Any) -> Any:
        if isinstance(x, Mapping):
            raise ValueError(
                f"engine is {self.engine!r}; a network on tokens, whose inputs have names, runs in torch, and exported "
                "by --to mixed"
            )
        x = normalised(self.loaded, torch.as_tensor(x))
        if self.run is None:
            program = program_of(self.loaded, x[:1], self.act_bits, self.trained)
            self.run = Twin(program) if self.engine == TORCH else self._in_engine(program)
        return self.run(x)

    def _in_engine(self, program: Program) -> Callable[[Tensor], Any]:
        run: Run = ENGINES[self.engine](GRAPH_WRITERS.get(self.engine, _onnx)(program), self.threads)

        def answer(x: Tensor) -> Any:
            tensors = [torch.from_numpy(out) for out in run({"input": x.cpu().numpy()})]
            return tensors[0] if len(tensors) == 1 else dict(zip(program.outputs, tensors, strict=True))

        return answer


def _onnx(program: Program) -> bytes:
    return integer_graph(program).SerializeToString()


def _tflite(program: Program) -> bytes:
    return tflite_graph(program).data


GRAPH_WRITERS = {
    "openvino": lambda program: openvino_graph(program).SerializeToString(),
    "qonnx": lambda program: quant_graph(program).SerializeToString(),
    "litert": _tflite,
    "tflm": _tflite,
    "cc": lambda program: c_graph(program).data,
}
"""{engine: the graph of a program that it runs}; others run integer ONNX."""


def program_of(loaded: Loaded, example: Tensor, act_bits: int | None = None, trained: int | None = None) -> Program:
    """The integer program of a file with a network or a program. example: an input of the network, batch first.
    ValueError: no integer form."""
    if loaded.program is not None:
        return loaded.program if act_bits is None else at_width(loaded.program, act_bits, trained)
    model = loaded.model
    assert model is not None
    return _at_width(loaded, act_bits, trained, lambda: lower(model, example))


def normalised(loaded: Loaded, x: Tensor) -> Tensor:
    """Inputs of a file as its network takes them: uint8 images scaled and normalised where the file does that."""
    if loaded.preprocessing is None:
        return x
    mean, std = (torch.tensor(v, dtype=torch.float32).view(-1, 1, 1) for v in loaded.preprocessing)
    return (x.float() / 255 - mean) / std


def at_bits(model: nn.Module | None, act_bits: int | None, trained: int | None) -> AbstractContextManager[None]:
    """Inside, `model` has the activations that were trained at `trained` bits at `act_bits`; None: as it is."""
    return nullcontext() if model is None or act_bits is None else precision(model, LowBit(act_bits, trained))


def _at_width(loaded: Loaded, act_bits: int | None, trained: int | None, work: Callable[[], Any]) -> Any:
    with at_bits(loaded.model, act_bits, trained):
        return work()


def _only_as_it_is(loaded: Loaded, act_bits: int | None) -> ValueError:
    if not loaded.engines:
        return ValueError(f"{loaded.path} holds weights only: its network is needed to run it")
    what = "at one activation width" if act_bits is not None else f"only in {', '.join(loaded.engines)}"
    return ValueError(
        f"{loaded.path} is a file of --to {loaded.format} and runs {what}; give the run, a packed file or one of "
        "--to onnx"
    )
