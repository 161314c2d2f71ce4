"""Times of training steps on one network, interleaved, so that their ratios hold on a shared machine."""

import statistics
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import product
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from spequant.app.bench.memory import peak_bytes
from spequant.app.bench.peers import brevitas, torch_ao
from spequant.app.bench.subjects import BERT, Subject, make_subject
from spequant.app.recipes.training import check_device, device_named
from spequant.calibration.ranges import calibrate
from spequant.data import Augment, ImageSet, train_batches
from spequant.methods import SPEQ, Distill, Method, Retrain, allow_float
from spequant.preparation.placement import prepare
from spequant.quantizers import LSQ, PACT, SAWB, Quantizer
from spequant.train import (
    Compiled,
    TrainingState,
    keep_freed_memory,
    make_accelerator,
    make_optimizer,
    make_schedule,
    parameter_groups,
    samples,
    train_step,
    wrap,
)

WARM_UP = 3  # steps that compile and fill caches
CALIBRATION = 16  # samples


@dataclass(frozen=True)
class BenchTrain:
    """Time training steps: float, Retrain, SPEQ and others, each compiled and eager.

    Each round runs two steps of every row and times the second. With --at-once it runs five, and takes the mean of the
    last four in the slowest process. The median over the rounds is printed.
    """

    network: str = "resnet20"
    """a network of the recipes, or bert6: six layers of BERT-base on 128 tokens"""
    batch: int = 128
    """images, or sequences, per step"""
    image: int = 32
    """height and width of the images"""
    bits: int = 2
    """of weights and activations; the first and the last layer and addends have 8"""
    dtype: Literal["fp32", "bf16"] = "bf16"
    """autocast of the steps; quantization stays fp32"""
    rows: tuple[str, ...] = ()
    """names of the rows; none: all. float is always measured"""
    rounds: int = 10
    """number of measurements of each row"""
    steps: int = 0
    """further steps of each row, to see that they add no graphs"""
    at_once: int = 1
    """adds to each row one of so many processes that train side by side, with the threads divided among them"""
    compile: bool = True
    """if False, every row is eager"""
    cuda_graphs: bool = False
    """on a GPU, replay compiled steps as CUDA graphs"""
    threads: int | None = None
    """threads of the CPU; None: as torch chooses"""
    device: str = "auto"
    json: Path | None = None
    """a file for the rows as JSON"""


@dataclass(frozen=True)
class Kind:
    """What a row trains.

    Args:
        model: makes the model from (subject, bits); it may change the subject's network and return it.
        method: makes the method from (subject, whether a teacher is compiled), before the model is made.
        compiled: whether the step is compiled.
    """

    model: Callable[[Subject, int], nn.Module]
    method: Callable[[Subject, bool], Method] = lambda subject, compile: Retrain()
    compiled: bool = True


def _quantized(weight: type[Quantizer], act: type[Quantizer]) -> Callable[[Subject, int], nn.Module]:
    def quantized(subject: Subject, bits: int) -> nn.Module:
        model = prepare(subject.network, weight=weight(bits), act=act(bits), residual=subject.residual)
        count = min(CALIBRATION, samples(subject.batch))
        calibrate(model, [subject.part(count)], samples=count)
        return model.train()

    return quantized


def _distill(subject: Subject, compile: bool) -> Method:
    method = Distill(subject.network)
    if compile:
        method.teacher = Compiled(method.teacher).eval()
    return method


_sawb_pact = _quantized(SAWB, PACT)
_compiled_kinds = {
    "float": Kind(lambda subject, bits: allow_float(subject.network)),
    "retrain": Kind(_sawb_pact),
    "speq": Kind(_sawb_pact, lambda subject, compile: SPEQ()),
    "distill": Kind(_sawb_pact, _distill),
    "lsq": Kind(_quantized(LSQ, LSQ)),
    "torch.ao": Kind(lambda subject, bits: allow_float(torch_ao(subject.network, bits))),
    "brevitas": Kind(lambda subject, bits: allow_float(brevitas(subject.network, bits))),
}
STEPS = _compiled_kinds | {f"{name} eager": replace(kind, compiled=False) for name, kind in _compiled_kinds.items()}
"""what each row trains, by its name"""


def bench_train(settings: BenchTrain, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Measure training steps. The rows take turns, each in its own process, with its own graphs and memory.

    Args:
        settings: what is measured.
        say: is called with a line for each row that does not run, which is left out.

    Returns:
        Rows `name`, `step_ms`, `ratio_to_float`, `peak_mib`, `graphs`, `threads`, `device`, `dtype`; for images also a
        row `input`, the time in which the next batch is made.

    Raises:
        ValueError: an unknown row or device, or a number that is too small.
        ChildProcessError: the float row does not run, or a row's process died.
    """
    _check(settings)
    device = device_named(settings.device)
    settings = replace(settings, device=str(device), threads=settings.threads or torch.get_num_threads())
    rows: list[Row] = []
    try:
        for name, copies in product(STEPS, sorted({1, settings.at_once})):
            if name == "float" or not settings.rows or name in settings.rows:
                row = Row(name, settings, copies)
                if row.error is None:
                    rows.append(row)
                    continue
                row.close()
                if row.label == "float":
                    raise ChildProcessError(f"the float step does not run: {row.error}")
                say(f"{row.label}: not measured, {row.error}")
        for _ in range(settings.rounds):
            for row in rows:
                row.times.append(row.ask(2 if settings.at_once == 1 else 5))
        for row in rows:
            row.ask(settings.steps)
    finally:
        for row in rows:
            row.close()
    floats = statistics.median(rows[0].times)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    shared = {"threads": settings.threads, "device": where, "dtype": settings.dtype}
    measured = [
        {
            "name": row.label,
            "step_ms": round(1000 * statistics.median(row.times), 3),
            "ratio_to_float": round(statistics.median(row.times) / floats, 3),
            "peak_mib": round(row.peak / 2**20, 1),
            "graphs": row.graphs,
            **shared,
        }
        for row in rows
    ]
    return measured if settings.network == BERT else [*measured, _input(settings, floats) | shared]


def _check(settings: BenchTrain) -> None:
    unknown = [name for name in settings.rows if name not in STEPS]
    if unknown:
        raise ValueError(f"rows has {', '.join(map(repr, unknown))}; expected some of {', '.join(map(repr, STEPS))}")
    for name, least in (("batch", 2), ("image", 1), ("rounds", 1), ("steps", 0), ("at_once", 1), ("threads", 1)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
    check_device(settings.device, "device")
    make_subject(settings.network, 2, settings.image, torch.device("cpu"))


class Row:
    """The processes of a row, mostly one, which run the same steps at the same time.

    `error`: why they do not run, or None. `peak`: bytes of all together. `graphs`: number of graphs that one has made.
    `times`: seconds per step, one entry per round.
    """

    def __init__(self, name: str, settings: BenchTrain, copies: int):
        self.label, self.copies, self.times = name if copies == 1 else f"{name} x{copies}", copies, []
        each = replace(settings, threads=max(1, (settings.threads or 1) // copies))
        self.error, self.peak, self.graphs, self.workers = None, 0, 0, []
        for _ in range(copies):
            if self.error is None:  # one after the other: the first fills the cache of compiled kernels
                self.workers.append(worker := Worker(name, each))
                self.error, peak, self.graphs = worker.hear()
                self.peak += peak

    def ask(self, steps: int) -> float:
        """Run `steps` steps; the mean seconds of one, without the first, in the slowest process."""
        for worker in self.workers:
            worker.ask(steps)
        answers = [worker.hear() for worker in self.workers]
        if reason := next((error for error, *_ in answers if error), None):
            raise ChildProcessError(f"row {self.label!r}: {reason}; leave it out with rows, or give fewer at_once")
        self.graphs = answers[0][2]
        return max(seconds for _, seconds, _ in answers)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()


class Worker:
    """One process of a row. It answers once when it is ready, and once after each `ask`."""

    def __init__(self, name: str, settings: BenchTrain):
        spawn = get_context("spawn")  # a forked process would lack torch's threads
        self.pipe, other = spawn.Pipe()
        self.process = spawn.Process(target=_work, args=(other, name, settings), daemon=True)
        self.process.start()
        other.close()

    def ask(self, steps: int) -> None:
        with suppress(BrokenPipeError):  # `hear` reports it
            self.pipe.send(steps)

    def hear(self) -> tuple[str | None, Any, int]:
        """(what went wrong or None, bytes when it is ready or seconds per step later, number of graphs)."""
        try:
            return self.pipe.recv()
        except (EOFError, ConnectionError):
            return "its process died", 0, 0

    def close(self) -> None:
        self.pipe.close()
        self.process.join(timeout=10)


def _work(pipe: Connection, name: str, settings: BenchTrain) -> None:
    """In the process of a row: get ready, then run as many steps as are asked for, until the pipe is closed."""
    device = torch.device(settings.device)
    torch.set_num_threads(settings.threads or 1)
    try:
        keep_freed_memory()  # as in a run
        step, fixed = ready(STEPS[name], settings, device)
        for _ in range(WARM_UP):
            step()
        pipe.send((None, fixed() + peak_bytes(step, device), _graphs()))
    except Exception as error:
        pipe.send((f"{type(error).__name__}: {(str(error).strip() or 'no message').splitlines()[0]}", 0, 0))
        return
    with suppress(EOFError, BrokenPipeError, KeyboardInterrupt):
        while True:
            times = []
            for _ in range(pipe.recv()):
                begun = time.perf_counter()
                step()
                if device.type == "cuda":
                    torch.cuda.synchronize(device)
                times.append(time.perf_counter() - begun)
            pipe.send((None, statistics.fmean(times[1:] or [0.0]), _graphs()))


def ready(kind: Kind, settings: BenchTrain, device: torch.device) -> tuple[Callable[[], Any], Callable[[], int]]:
    """A training step, ready to run.

    Returns:
        (the step, the bytes of all tensors that exist between steps: parameters, buffers, momenta, teacher, batch).
    """
    subject = make_subject(settings.network, settings.batch, settings.image, device)
    compiled = kind.compiled and settings.compile
    method = kind.method(subject, compiled)
    model = kind.model(subject, settings.bits).to(device)
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=1e-3, weight_decay=1e-4))
    wrapped = wrap(model, compile=compiled, cuda_graphs=settings.cuda_graphs)
    state = TrainingState(model, method, optimizer, make_schedule("cosine", optimizer, 10**6), wrapped=wrapped)
    accelerator = make_accelerator(settings.dtype, device=str(device))

    def fixed() -> int:
        tensors = [*model.parameters(), *model.buffers(), *(v for s in optimizer.state.values() for v in s.values())]
        if isinstance(method, Distill):
            tensors += [*method.teacher.parameters(), *method.teacher.buffers()]
        tensors += subject.tensors
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))

    return lambda: train_step(state, subject.batch, accelerator), fixed


def _graphs() -> int:
    """The number of graphs that torch.compile has made in this process."""
    from torch._dynamo.utils import counters

    return counters["stats"]["unique_graphs"]


def _input(settings: BenchTrain, floats: float) -> dict[str, Any]:
    """The time that a step waits for its images, which are augmented as in training when they are used."""
    device, threads = torch.device(settings.device), torch.get_num_threads()
    keep_freed_memory()  # as in a run
    images = torch.randint(256, (max(5000, 2 * settings.batch), 3, settings.image, settings.image), dtype=torch.uint8)
    data = ImageSet(images, torch.zeros(len(images), dtype=torch.int64), (0.5,) * 3, (0.25,) * 3, 10).to(device)
    times = []
    torch.set_num_threads(settings.threads or threads)
    for epoch in range(settings.rounds):
        batches = train_batches(data, settings.batch, seed=0, epoch=epoch, augment=Augment())
        next(batches)  # the first one includes the shuffle
        begun = time.perf_counter()
        next(batches)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - begun)
    torch.set_num_threads(threads)
    wait = statistics.median(times)
    return {"name": "input", "step_ms": round(1000 * wait, 3), "ratio_to_float": round(wait / floats, 4)}
