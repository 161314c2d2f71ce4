"""Times of training steps on one network, interleaved, so that their ratios hold on a shared machine."""

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import nn

from spequant.app.bench.subjects import BERTS, Subject, make_subject
from spequant.app.bench.workers import TimedStep, WorkerGroup, seconds_of
from spequant.app.commands.bench import BenchTrain
from spequant.app.recipes.training import check_device, device_named
from spequant.app.runs.reporter import Quiet, Reporter
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

CALIBRATION_SAMPLES = 16
STARTED_AT_ONCE = 2
"""rows that compile at the same time: a core each, of two"""
QUICK_ROUNDS = 3
FLOAT_ROW = "float"
"""the row that the others are compared with"""


def _retrain(subject: Subject, compile: bool) -> Method:
    return Retrain()


def _speq(subject: Subject, compile: bool) -> Method:
    return SPEQ()


def _distill(subject: Subject, compile: bool) -> Method:
    method = Distill(subject.network)
    if compile and method.teacher is not None:
        method.teacher = Compiled(method.teacher).eval()
    return method


@dataclass(frozen=True)
class StepKind:
    """What a row trains; picklable, since each row has its own process.

    Args:
        model: makes the model from (subject, bits); it may change the subject's network and return it.
        method: makes the method from (subject, whether a teacher is compiled), before the model is made.
        compiled: whether the step is compiled.
    """

    model: Callable[[Subject, int], nn.Module]
    method: Callable[[Subject, bool], Method] = _retrain
    compiled: bool = True


def compiled_and_eager(kinds: Mapping[str, StepKind]) -> dict[str, StepKind]:
    """`kinds`, then the same ones eager, as "NAME eager"."""
    return {**kinds, **{f"{name} eager": replace(kind, compiled=False) for name, kind in kinds.items()}}


def _float(subject: Subject, bits: int) -> nn.Module:
    return allow_float(subject.network)


def _quantized(subject: Subject, bits: int, weight: type[Quantizer] = SAWB, act: type[Quantizer] = PACT) -> nn.Module:
    model = prepare(subject.network, weight=weight(bits), act=act(bits), residual=subject.residual)
    count = min(CALIBRATION_SAMPLES, samples(subject.batch))
    calibrate(model, [subject.part(count)], samples=count)
    return model.train()


STEPS = compiled_and_eager(
    {
        FLOAT_ROW: StepKind(_float),
        "retrain": StepKind(_quantized),
        "speq": StepKind(_quantized, _speq),
        "distill": StepKind(_quantized, _distill),
        "lsq": StepKind(partial(_quantized, weight=LSQ, act=LSQ)),
    }
)
"""{name of a row: what it trains}"""


def bench_train(
    settings: BenchTrain, reporter: Reporter | None = None, kinds: Mapping[str, StepKind] = STEPS
) -> list[dict[str, Any]]:
    """Measure training steps. The rows take turns, each in its own process, with its own graphs and memory.

    Args:
        settings: what is measured.
        reporter: is told the phases, and a line for each row that does not run, which is left out; None: nobody is.
        kinds: what the rows train, by their names; the first one is "float".

    Returns:
        Rows `name`, `step_ms`, `ratio_to_float`, `peak_mib`, `graphs`, `threads`, `device`, `dtype`; for images also a
        row `input`, the time in which the next batch is made.

    Raises:
        ValueError: an unknown row or device, or a number that is too small.
        ChildProcessError: the float row does not run, or a row's process died.
    """
    _check(settings, kinds)
    reporter = reporter or Quiet()
    device, threads = device_named(settings.device), settings.threads or torch.get_num_threads()
    settings = replace(settings, device=str(device))
    groups, starting = list[WorkerGroup](), list[WorkerGroup]()
    try:
        names = [name for name in kinds if not settings.rows or name in (FLOAT_ROW, *settings.rows)]
        left = list(product(names, sorted({1, settings.at_once})))
        count = len(left)
        for number in range(count):
            while left and len(starting) < STARTED_AT_ONCE:
                name, copies = left.pop(0)
                make_step = partial(ready, kinds[name], settings)
                starting.append(WorkerGroup(name, make_step, settings.device, threads, copies))
            group = starting.pop(0)
            compiles = kinds[group.name].compiled and settings.compile
            reporter.phase(f"{group.label} ({number + 1}/{count}): {'compiling and ' * compiles}warming up")
            if group.wait().error is None:
                groups.append(group)
                continue
            group.close()
            if group.label == FLOAT_ROW:
                raise ChildProcessError(f"the float step does not run: {group.error}")
            reporter.say(f"{group.label}: not measured, {group.error}")
        reporter.phase(f"timing, {settings.rounds} rounds")
        for _ in reporter.track(range(settings.rounds), settings.rounds):
            for group in groups:
                group.times.append(group.ask(2 if settings.at_once == 1 else 5))
        for group in groups:
            group.ask(settings.steps)
    finally:
        for group in [*groups, *starting]:
            group.close()
    times = {group.label: statistics.median(group.times) for group in groups}
    rows: list[dict[str, Any]] = [
        {**_times(group.label, times), "peak_mib": round(group.peak / 2**20, 1), "graphs": group.graphs}
        for group in groups
    ]
    if settings.network not in BERTS:
        rows.append(_times("input", times | {"input": _input_seconds(settings, threads)}))
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return [row | {"threads": threads, "device": place, "dtype": settings.dtype} for row in rows]


def in_full(settings: BenchTrain) -> BenchTrain:
    """`settings` with what --quick stands for.

    Raises:
        ValueError: they say otherwise.
    """
    if not settings.quick:
        return settings
    for name in ("rows", "rounds"):
        if (value := getattr(settings, name)) != getattr(BenchTrain, name):
            raise ValueError(f"{name} is {value!r}, which quick chooses; expected none, or no quick")
    network = "resnet8" if settings.network == BenchTrain.network else settings.network
    return replace(settings, network=network, rows=("retrain",), rounds=QUICK_ROUNDS, quick=False)


def _check(settings: BenchTrain, kinds: Mapping[str, StepKind]) -> None:
    unknown = [name for name in settings.rows if name not in kinds]
    if unknown:
        raise ValueError(f"rows has {', '.join(map(repr, unknown))}; expected some of {', '.join(map(repr, kinds))}")
    for name, least in (("batch", 2), ("size", 1), ("rounds", 1), ("steps", 0), ("at_once", 1), ("threads", 1)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ValueError(f"{name} is {value}; expected {least} or more")
    check_device(settings.device, "device")
    make_subject(settings.network, 2, settings.size, torch.device("cpu"))


def _times(name: str, times: Mapping[str, float]) -> dict[str, Any]:
    """The columns of the row `name` that hold times, given seconds by row."""
    ratio = times[name] / times[FLOAT_ROW]
    return {"name": name, "step_ms": round(1000 * times[name], 3), "ratio_to_float": round(ratio, 4)}


def ready(kind: StepKind, settings: BenchTrain) -> tuple[TimedStep, Callable[[], int]]:
    """A training step, ready to run.

    Returns:
        (the step, the bytes of all tensors that exist between steps: parameters, buffers, momenta, teacher, batch).
    """
    subject = make_subject(settings.network, settings.batch, settings.size, torch.device(settings.device))
    compiled = kind.compiled and settings.compile
    method = kind.method(subject, compiled)
    model = kind.model(subject, settings.bits).to(settings.device)
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=1e-3, weight_decay=1e-4))
    wrapped = wrap(model, compile=compiled, cuda_graphs=settings.cuda_graphs)
    state = TrainingState(model, method, optimizer, make_schedule("cosine", optimizer, 10**6), wrapped=wrapped)
    accelerator = make_accelerator(settings.dtype, device=settings.device)

    def fixed_bytes() -> int:
        tensors = [*model.parameters(), *model.buffers(), *(v for s in optimizer.state.values() for v in s.values())]
        if isinstance(method, Distill) and method.teacher is not None:
            tensors += [*method.teacher.parameters(), *method.teacher.buffers()]
        tensors += subject.tensors
        return sum(t.numel() * t.element_size() for t in tensors if isinstance(t, torch.Tensor))

    return lambda: train_step(state, subject.batch, accelerator), fixed_bytes


def _input_seconds(settings: BenchTrain, threads: int) -> float:
    """The time that a step waits for its images, which are augmented as in training when they are used."""
    keep_freed_memory()  # as in a run
    images = torch.randint(256, (max(5000, 2 * settings.batch), 3, settings.size, settings.size), dtype=torch.uint8)
    data = ImageSet(images, torch.zeros(len(images), dtype=torch.int64), (0.5,) * 3, (0.25,) * 3, 10)
    data, times, before = data.to(torch.device(settings.device)), [], torch.get_num_threads()
    torch.set_num_threads(threads)
    for epoch in range(settings.rounds):
        batches = train_batches(data, settings.batch, seed=0, epoch=epoch, augment=Augment())
        next(batches)  # the first one includes the shuffle
        times.append(seconds_of(partial(next, batches), settings.device))
    torch.set_num_threads(before)
    return statistics.median(times)
