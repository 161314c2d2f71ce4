"""One run while it trains: what it measures, writes and reports around the training loop."""

import time
from typing import Any

from torch import Tensor, nn

from spequant.app.runs.assembly import Assembly
from spequant.app.runs.compile_choice import CompileChoice, Trial, pause
from spequant.app.runs.compile_time import last_seconds, remember
from spequant.app.runs.reporter import Reporter
from spequant.app.runs.writer import Writer
from spequant.calibration.batch_norm import reestimate_batch_norm, reestimated
from spequant.deploy import align_ranges, quantize_biases
from spequant.layers import weight_bits
from spequant.processes import anyone
from spequant.train import Diagnostics, Interrupted, Progress, Snapshot, TrainingState, fit, layers_row
from spequant.train.interruption import interruptions


class Session:
    """One run while it trains.

    Args:
        assembly: What is trained.
        writer: Of the run's folder.
        reporter: Is given steps and epochs.
        facts: What the last checkpoint holds about the run; {} at the start.

    Raises:
        ValueError: The file of soft labels is another one than the run began with.
    """

    def __init__(self, assembly: Assembly, writer: Writer, reporter: Reporter, facts: dict[str, Any]):
        self.assembly, self.writer, self.reporter = assembly, writer, reporter
        self.recipe, self.state, self.field = assembly.recipe, assembly.state, assembly.field
        if facts and facts.get("soft_labels") != self.field.answers:
            raise ValueError(
                f"method.soft_labels has digest {self.field.answers}, expected {facts.get('soft_labels')}: the run "
                "began with another file; put that one back, or give another --out"
            )
        self.earlier = float(facts.get("seconds", 0.0))
        self.begin = time.perf_counter()
        self.diagnostics = Diagnostics() if writer.writes and self.recipe.train.layers_every is not None else None
        self.sample = None if self.diagnostics is None else self.field.sample()
        self.layers_named = bool(facts.get("layers_named"))
        """whether a row of this run has the layers' names"""
        self.metrics_bytes = int(facts.get("metrics_bytes", 0))
        self.compiling_since: float | None = None
        self.trial: Trial | None = None
        self.chosen: bool | None = facts.get("compiled")
        """whether the run is compiled, which `train.compile auto` left to its first steps; None: not known"""
        self.clock = 0.0

    def train(self, snapshot: Snapshot | None) -> dict[str, Any]:
        """Train to the end and return the result; `snapshot` is where the state stands."""
        environment = self.writer.start(self.state.device, self.metrics_bytes)
        # trackers take no None
        accelerator, entries = self.assembly.accelerator, {k: v for k, v in environment.items() if v is not None}
        accelerator.init_trackers("tracker", entries)
        try:
            if self.writer.writes:
                self.field.keep(self.writer.folder)
            self._begin(snapshot, environment)
            self._fit()
            return self._finish()
        finally:
            for tracker in accelerator.trackers:
                tracker.finish()
            self.writer.close()

    def _begin(self, snapshot: Snapshot | None, environment: dict[str, Any]) -> None:
        if snapshot is None:
            self.writer.row({"kind": "start", **environment})
            if self.recipe.quantized:
                self.writer.row({"kind": "calibrated", **self._measure(self.state.model, "held_out")})
            self._layers(0)
            return
        if self.diagnostics is not None:
            self.diagnostics.codes = {k: v.to(self.state.device) for k, v in snapshot.part("codes").items()}
        self.writer.row({"kind": "resumed", "step": self.state.step, **environment})

    def _fit(self) -> None:
        settings = self.recipe.train
        if settings.compile == "auto" and self.chosen is None:
            self.trial, self.clock = Trial(self.assembly), time.perf_counter()
            self._training()
        elif settings.compile == "auto" and not self.chosen:
            pause(self.assembly, True)
            self._training()
        elif settings.compile:
            self._compiling()
        else:
            self._training()
        with interruptions() as stop:  # before and after there is nothing to save: signals act as ever
            fit(
                self.state,
                self.field.batches,
                epochs=settings.epochs,
                steps=self.assembly.steps,
                accelerator=self.assembly.accelerator,
                clip_norm=settings.clip_norm,
                task=self.field.task,
                checkpoint_every=settings.checkpoint_every,
                on_step=self._step,
                on_epoch=self._epoch,
                on_checkpoint=self._save,
                stop=stop,
            )
            if anyone(stop()):  # while the last epoch was measured, after which it was saved
                raise Interrupted(self.state.step)

    def _compiling(self) -> None:
        """Say that the next step compiles, and how long that took the last time."""
        seconds = last_seconds(self.recipe, self.state.device)
        time_it_takes = "which can take a minute" if seconds is None else f"about {seconds:.0f} s, as the last time"
        self.reporter.phase(f"compiling the training step, {time_it_takes}")
        self.compiling_since = time.perf_counter()

    def _try(self, progress: Progress) -> None:
        """Time an uncompiled step; after enough of them, compile if that pays."""
        assert self.trial is not None
        float(progress.sums[0])  # waits for the device
        now = time.perf_counter()
        choice, self.clock = self.trial.step(now - self.clock), now
        if choice is not None:
            self._choose(choice)

    def _choose(self, choice: CompileChoice) -> None:
        self.trial, self.chosen = None, bool(anyone(choice.pays))  # the same in every process
        self.reporter.say(choice.line())
        if self.chosen:
            pause(self.assembly, False)
            self._compiling()

    def _training(self) -> None:
        self.reporter.phase(f"training, {self.recipe.train.epochs} epochs of {self.assembly.steps} steps")

    def _step(self, progress: Progress) -> None:
        """Report a step; the first one of all, in which the network is compiled, is timed."""
        if self.compiling_since is not None:
            if self.writer.writes:
                remember(self.recipe, self.state.device, time.perf_counter() - self.compiling_since)
            self.compiling_since = None
            self._training()
        if self.trial is not None:
            self._try(progress)
        self.reporter.step(progress)

    def _measure(self, model: nn.Module, part: str) -> dict[str, float]:
        """Figures of the part "held_out" or "test", with its name before theirs; {} if nothing is held out."""
        on_held_out = part == "held_out"
        count = self.field.sizes[1 if on_held_out else 2]
        if count:
            self.reporter.phase(
                f"measuring on {count:,} held-out samples" if on_held_out else f"testing on {count:,} samples"
            )
        figures = self.field.measure(model, held_out=on_held_out, track=self.reporter.track)
        return {f"{part}_{name}": figure for name, figure in figures.items()}

    def _epoch(self, progress: Progress) -> None:
        due = (progress.epoch + 1) % self.recipe.train.measure_every == 0
        row = {**progress.row(), **(self._measure(self.state.model, "held_out") if due else {})}
        if self.state.freezer is not None:
            row["frozen"] = self.state.freezer.frozen_share()
        self.writer.row({"kind": "epoch", **row})
        self.assembly.accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=self.state.step)
        self.reporter.epoch({**row, "epochs": progress.epochs})
        self._layers(progress.epoch + 1)

    def _layers(self, epoch: int) -> None:
        """Look at the layers, if that is due after `epoch` epochs; after the last epoch it always is."""
        settings = self.recipe.train
        every = settings.layers_every
        if self.diagnostics is None or every is None or (epoch % every and epoch < settings.epochs):
            return
        self.reporter.phase("looking at the layers")
        statistics = self.diagnostics(self.state.model, self.sample, step=epoch, run=self.field.task.logits)
        self.writer.row({"kind": "layers", "epoch": epoch, **layers_row(statistics, first=not self.layers_named)})
        self.layers_named = True

    def _save(self, state: TrainingState) -> None:
        snapshot = state.capture()  # in every process: it may gather
        codes = {} if self.diagnostics is None else {f"codes.{k}": v for k, v in self.diagnostics.codes.items()}
        facts = {"seconds": self._seconds(), "layers_named": self.layers_named, "compiled": self.chosen}
        facts["soft_labels"] = self.field.answers
        self.writer.checkpoint(Snapshot({**snapshot.tensors, **codes}, snapshot.numbers), facts)

    def _finish(self) -> dict[str, Any]:
        """Align ranges, measure batch norm's statistics anew, put biases on their grid, measure the network, and write
        it."""
        model, example = self.state.result, self.field.example
        example = example if self.recipe.quantized else None
        aligned = {} if example is None else _aligned_ranges(model, example)
        if reestimated(model):
            self.reporter.phase("measuring batch norm's statistics")
            reestimate_batch_norm(model, self.field.statistics())
        if example is not None:
            self.writer.row({"kind": "biases", **_integer_biases(model, example), "aligned": aligned})
        result = {
            "recipe": self.recipe.name,
            "seed": self.recipe.train.seed,
            **self._measure(model, "test"),
            **self._measure(model, "held_out"),
            "weight_bytes": weight_bits(model) // 8,
            "seconds": round(self._seconds(), 1),
        }
        self.writer.finish(model, result)
        return result

    def _seconds(self) -> float:
        """Training time so far, with that before the last checkpoint."""
        return self.earlier + time.perf_counter() - self.begin


def _aligned_ranges(model: nn.Module, example: Tensor) -> dict[str, float]:
    """Let tensors that two quantizers read be rounded once in an export; the share by which each range changed."""
    try:
        return {name: round(factor, 4) for name, factor in align_ranges(model, example).items()}
    except ValueError:  # `_integer_biases` says what is in the way
        return {}


def _integer_biases(model: nn.Module, example: Tensor) -> dict[str, Any]:
    """Round biases to values that integer arithmetic has, so that the accuracy measured is that of an export."""
    try:
        quantize_biases(model, example)
    except ValueError as error:  # a network without integer form is trained all the same
        return {"integer": False, "reason": str(error)}
    return {"integer": True}
