"""One run under way: what it logs, saves and measures around the training loop."""

import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors.torch import save
from torch import Tensor, nn

from spequant.app.recipes.recipe import Recipe
from spequant.app.recipes.serial import to_json
from spequant.app.runs.assembly import Assembly, assemble
from spequant.app.runs.folder import CHECKPOINTS, METRICS, RESULT, STATE, Metrics, last_checkpoint, start_files
from spequant.app.runs.reporter import Reporter
from spequant.calibration.batch_norm import reestimate_batch_norm
from spequant.deploy import quantize_biases
from spequant.files import placed, write_whole
from spequant.layers import weight_bits
from spequant.processes import anyone, rank
from spequant.train import Diagnostics, Interrupted, Progress, Snapshot, TrainingState, fit, layers_row
from spequant.train.checkpoint import write
from spequant.train.interruption import interruptions

if TYPE_CHECKING:
    from accelerate import Accelerator


def run_session(
    recipe: Recipe, accelerator: "Accelerator", folder: Path, reporter: Reporter, resume: bool
) -> dict[str, Any]:
    """Train as `recipe` says, in `folder`, from its last checkpoint where `resume` is true; the result."""
    snapshot, facts = last_checkpoint(recipe, folder) if resume else (None, {})
    session = _Session(assemble(recipe, accelerator, snapshot), folder, reporter, facts)
    try:
        return session.train(snapshot)
    finally:
        session.close()


class _Session:
    """One run under way: what it logs, saves and measures around the loop."""

    def __init__(self, assembly: Assembly, folder: Path, reporter: Reporter, facts: dict[str, Any]):
        self.assembly, self.folder, self.reporter = assembly, folder, reporter
        self.recipe, self.state = assembly.recipe, assembly.state
        self.main = rank() == 0
        self.earlier = float(facts.get("seconds", 0.0))
        self.begun = time.perf_counter()
        self.field = assembly.field
        self.diagnostics = Diagnostics() if self.main and self.recipe.train.layers_every is not None else None
        self.sample = None if self.diagnostics is None else self.field.sample()
        self.named = bool(facts.get("layers_named"))
        """whether a row of this run has the layers' names"""
        self.here = start_files(folder, self.recipe, self.state.device) if self.main else {}
        known = {k: v for k, v in self.here.items() if v is not None}  # trackers take no None
        assembly.accelerator.init_trackers("tracker", known)
        if self.main:
            self.field.keep(folder)
            self.metrics = Metrics(folder / METRICS, int(facts.get("metrics_bytes", 0)))

    def train(self, snapshot: Snapshot | None) -> dict[str, Any]:
        settings, assembly = self.recipe.train, self.assembly
        if snapshot is None:
            self.write({"kind": "start", **self.here})
            if self.recipe.quantized:
                self.write({"kind": "calibrated", **self.held_out(self.state.model)})
            self.layers(0)
        else:
            if self.diagnostics is not None:
                self.diagnostics.codes = {k: v.to(self.state.device) for k, v in snapshot.part("codes").items()}
            self.write({"kind": "resumed", "step": self.state.step, **self.here})
        with interruptions() as stop:  # before and after there is nothing to save: signals act as ever
            fit(
                self.state,
                self.field.batches,
                epochs=settings.epochs,
                steps=assembly.steps,
                accelerator=assembly.accelerator,
                clip_norm=settings.clip_norm,
                task=self.field.task,
                checkpoint_every=settings.checkpoint_every,
                on_step=self.reporter.step,
                on_epoch=self.epoch,
                on_checkpoint=self.save,
                stop=stop,
            )
            if anyone(stop()):  # while the last epoch was measured, after which it was saved
                raise Interrupted(self.state.step)
        return self.finish()

    def write(self, row: dict[str, Any]) -> None:
        if self.main:
            self.metrics.write(row)

    def close(self) -> None:
        for tracker in self.assembly.accelerator.trackers:
            tracker.finish()
        if self.main:
            self.metrics.close()

    def held_out(self, model: nn.Module) -> dict[str, float]:
        """Figures of what is held out, where anything is."""
        return {f"held_out_{name}": figure for name, figure in self.field.measure(model, held=True).items()}

    def epoch(self, progress: Progress) -> None:
        measured = (progress.epoch + 1) % self.recipe.train.measure_every == 0
        row = {**progress.row(), **(self.held_out(self.state.model) if measured else {})}
        if self.state.freezer is not None:
            row["frozen"] = self.state.freezer.frozen_share()
        self.write({"kind": "epoch", **row})
        self.assembly.accelerator.log({k: v for k, v in row.items() if k != "epoch"}, step=self.state.step)
        self.reporter.epoch({**row, "epochs": progress.epochs})
        self.layers(progress.epoch + 1)

    def layers(self, epoch: int) -> None:
        """A look at the layers, if one is due after `epoch` epochs; on the last epoch in any case."""
        settings = self.recipe.train
        every = settings.layers_every
        if self.diagnostics is None or every is None or (epoch % every and epoch < settings.epochs):
            return
        found = self.diagnostics(self.state.model, self.sample, step=epoch, run=self.field.task.logits)
        self.write({"kind": "layers", "epoch": epoch, **layers_row(found, first=not self.named)})
        self.named = True

    def save(self, state: TrainingState) -> None:
        snapshot = state.capture()
        if self.main:
            known = {} if self.diagnostics is None else self.diagnostics.codes
            codes = {f"codes.{k}": v for k, v in known.items()}
            facts = {
                "recipe": json.loads(to_json(self.recipe)),
                "metrics_bytes": self.metrics.size(),
                "seconds": self.earlier + time.perf_counter() - self.begun,
                "layers_named": self.named,
            }
            write(self.folder / CHECKPOINTS, Snapshot({**snapshot.tensors, **codes}, snapshot.numbers), facts)

    def finish(self) -> dict[str, Any]:
        """Batch norm measured anew, biases put on their grid, the figures, the network; result.json comes last."""
        model, example = self.state.result, self.field.example
        reestimate_batch_norm(model, self.field.statistics())
        if self.recipe.quantized and example is not None:
            self.write({"kind": "biases", **_integer_biases(model, example)})
        result = {
            "recipe": self.recipe.name,
            "seed": self.recipe.train.seed,
            **{f"test_{name}": figure for name, figure in self.field.measure(model).items()},
            **self.held_out(model),
            "weight_bytes": weight_bits(model) // 8,
            "seconds": round(self.earlier + time.perf_counter() - self.begun, 1),
        }
        self.write({"kind": "result", **result})
        if self.main:
            with placed(self.folder / STATE) as path:
                path.write_bytes(save(_saved(model)))
            write_whole(self.folder / RESULT, json.dumps(result, indent=2))
        return result


def _integer_biases(model: nn.Module, example: Tensor) -> dict[str, Any]:
    """Round biases to what integer arithmetic has, so that the accuracy measured is an export's; what came of it."""
    try:
        quantize_biases(model, example)
    except ValueError as error:  # a network without integer form is trained all the same
        return {"integer": False, "reason": str(error)}
    return {"integer": True}


def _saved(model: nn.Module) -> dict[str, Tensor]:
    """state_dict with a storage of its own for each name, as safetensors wants it: shared quantizers appear twice."""
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()}
