"""Hugging Face's `Trainer` with a method as its loss. Scripts keep their arguments, data, collator, callbacks, metrics.

Devices, mixed precision, accumulation, schedules and evaluation are left to the Trainer. This file has the loss, the
optimizer group of the quantizers' ranges, and checkpoints with every tensor of a prepared network.
"""

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from spequant.files import placed, write_whole
from spequant.integrations.checkpoints import WEIGHTS, load_checkpoint
from spequant.layers import act_quantizers
from spequant.methods import SPEQ, Losses, Method, SPEQDistill
from spequant.methods.base import trained_by
from spequant.methods.tasks import Task
from spequant.processes import sum_over_processes
from spequant.quantizers import Quantizer

try:
    from transformers import PreTrainedModel, Trainer, TrainingArguments
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error.name} is not installed: pip install 'spequant[text,train]'") from error

METHOD_FILE = "method.json"


class QATTrainer(Trainer):
    """`transformers.Trainer` whose training loss is `method(model, batch)`.

    Evaluation runs only the student, at its bits, and reports the loss of the method's `task`. Logs have `task` and
    `distill` in addition to `loss`.

    Checkpoints have every tensor of the prepared network, and the state of the method in method.json, so that a resumed
    run on the CPU ends with the weights of an uninterrupted one. Those of transformers' networks are loaded by
    `from_pretrained`, too; others, and a network that is there already, by `load_checkpoint`.

    With `bf16` the network stays under autocast in evaluation and after training, as in any Trainer. Call
    `accelerator.unwrap_model(model, keep_fp32_wrapper=False)` for fp32 results and for exports.

    Args:
        model: What `prepare` returned, calibrated.
        args: The Trainer's arguments.
        method: `SPEQ(task=SpanExtraction())`, `Retrain`, `Distill` or your own (model, batch) -> Losses.
        range_lr: Learning rate of the quantizers' ranges (clips, steps, offsets), 0 or more, with the same schedule as
            the others; None: `learning_rate`. Ranges are in a separate group without weight decay.
        trainer: The Trainer's other arguments, by name. The loss is the method's, so that `compute_loss_func` and
            `label_smoothing_factor` are refused.

    Raises:
        TypeError: `method` is no method, or its state cannot be saved as JSON.
        ValueError: A setting would be ignored, the network has no activation quantizers although the method needs them,
            or the network would be sharded.
    """

    loss_is_scaled_for_ga = False  # a mean over the batch, to be divided by the number of batches that accumulate

    def __init__(
        self,
        model: nn.Module | None = None,
        args: TrainingArguments | None = None,
        *,
        method: Method,
        range_lr: float | None = None,
        **trainer: Any,
    ):
        _check_method(method)
        if range_lr is not None and not 0 <= range_lr < math.inf:
            raise ValueError(f"range_lr is {range_lr!r}; expected a finite learning rate of 0 or more, or None")
        super().__init__(model, args, **trainer)  # type: ignore[arg-type]
        self.method, self.range_lr = method, range_lr
        self.model_accepts_loss_kwargs = False  # versions without loss_is_scaled_for_ga ask this
        self.sums: Tensor | None = None  # task loss, distillation loss and steps since the last log, on the device
        self._refuse_arguments()
        for part in (method, getattr(method, "distill", None)):
            if isinstance(teacher := getattr(part, "teacher", None), nn.Module):
                teacher.to(self.args.device)

    def _refuse_arguments(self) -> None:
        """Refuse arguments that would be ignored or that the method does not support."""
        args, model = self.args, self.model
        if isinstance(self.method, SPEQ | SPEQDistill) and not act_quantizers(model):  # type: ignore[arg-type]
            raise ValueError(
                f"model is a {type(model).__name__} without activation quantizers, whose precision "
                f"{type(self.method).__name__} draws; call spequant.prepare(model, weight=..., act=...) and "
                "spequant.calibrate(model, batches), then give what prepare returned"
            )
        if self.compute_loss_func is not None or args.label_smoothing_factor:
            name = "compute_loss_func" if self.compute_loss_func is not None else "args.label_smoothing_factor"
            raise ValueError(f"{name} is given, but the loss is the method's; put it into the task that the method has")
        if self.range_lr is not None and self.optimizer is not None:
            raise ValueError(
                f"range_lr is {self.range_lr!r} and optimizers has an optimizer; expected one of the two: give the "
                "ranges their rate in a group of that optimizer"
            )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                f"args.{'fsdp' if self.is_fsdp_enabled else 'deepspeed'} shards the network; expected one device, or "
                "several processes with the whole network each (torchrun or accelerate launch without it)"
            )
        if args.n_gpu > 1:
            raise ValueError(
                f"args see {args.n_gpu} GPUs, which one process would use with DataParallel; expected one GPU per "
                "process: start with torchrun or accelerate launch, or set CUDA_VISIBLE_DEVICES"
            )

    # --- the loss ----------------------------------------------------------------------------------------------

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Compute the method's total loss in training, and in evaluation the task's loss, with the model's outputs."""
        task = _task_of(self.method)
        if model.training:
            with self.accelerator.autocast(), _missing_named(task, inputs):
                losses = self.method(model, inputs)
            if not isinstance(losses, Losses):
                raise TypeError(f"method returned a {type(losses).__name__}; expected spequant.methods.Losses")
            self._note(losses)
            return (losses.total, {"logits": losses.logits}) if return_outputs else losses.total
        if task is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        with _outputs_seen(model) as seen, _missing_named(task, inputs):
            logits = task.logits(model, inputs)
            loss = task.loss(logits, inputs)
        if not return_outputs:
            return loss
        outputs = seen[-1]
        if not isinstance(outputs, dict):  # the Trainer drops the first of a tuple as the loss
            outputs = (loss, *outputs) if isinstance(outputs, tuple | list) else (loss, outputs)
        return loss, outputs

    @torch.no_grad()
    def _note(self, losses: Losses) -> None:
        """Add up the losses for the logs without waiting for the device."""
        parts = torch.stack([losses.task, losses.distill, torch.ones_like(losses.task)]).float()
        parts /= getattr(self, "current_gradient_accumulation_steps", 1)  # only inside `train`
        self.sums = parts if self.sums is None else self.sums + parts

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log also the means of the task loss and the distillation loss since the last log."""
        if "loss" in logs and self.sums is not None:
            task, distill, steps = sum_over_processes(self.sums.clone()).tolist()
            logs = {"loss": logs["loss"], "task": task / steps, "distill": distill / steps, **logs}
            self.sums = None
        super().log(logs, start_time)

    # --- the optimizer -----------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the Trainer's optimizer, and move the ranges out of its groups into a new last group."""
        self.sums = None  # training begins
        created_here = self.optimizer is None
        optimizer = super().create_optimizer(model)
        network: Any = self.model if model is None else model
        if created_here:
            _separate_ranges(optimizer, network, self.range_lr)
        else:
            _check_parameters(optimizer, network)
        return optimizer

    # --- checkpoints -------------------------------------------------------------------------------------------

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Save the network and the method's state.

        A network that does not save itself (`save_pretrained`) is saved with each tensor under each of its names,
        because the Trainer refuses networks whose layers share tensors.
        """
        network, saves_itself = self.model, isinstance(self.model, PreTrainedModel)
        super()._save(output_dir, state_dict=None if saves_itself else {})
        if self.args.should_save:
            folder = Path(output_dir or str(self.args.output_dir))
            if not saves_itself:
                state = {name: tensor.detach().to("cpu", copy=True) for name, tensor in network.state_dict().items()}  # type: ignore[union-attr]
                with placed(folder / WEIGHTS) as path:
                    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, {"format": "pt"})
            if hasattr(self.method, "state_dict"):
                write_whole(folder / METHOD_FILE, json.dumps(self.method.state_dict()))  # type: ignore[attr-defined]

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_checkpoint(self.model if model is None else model, resume_from_checkpoint)  # type: ignore[arg-type]
        if hasattr(self.method, "load_state_dict"):
            file = Path(resume_from_checkpoint) / METHOD_FILE
            if not file.is_file():
                raise FileNotFoundError(
                    f"{file} does not exist; expected the state of {type(self.method).__name__}: resume with the "
                    "method that the checkpoint was saved with, or from a checkpoint of a QATTrainer"
                )
            self.method.load_state_dict(json.loads(file.read_text()))  # type: ignore[attr-defined]

    def _load_best_model(self) -> None:
        load_checkpoint(self.model, self.state.best_model_checkpoint)  # type: ignore[arg-type]


def _check_method(method: Any) -> None:
    if not callable(method) or isinstance(method, type):
        raise TypeError(
            f"method is {method!r}; expected a callable (model, batch) -> Losses, e.g. SPEQ(task=SpanExtraction())"
        )
    if trained_by(method) is not None:
        raise ValueError(
            f"method is a {type(method).__name__} that trains parameters of its own, which the Trainer's optimizer "
            "does not know; expected a method that has none, or spequant's own loop: spequant train"
        )
    if hasattr(method, "state_dict"):
        try:
            json.dumps(method.state_dict())
        except TypeError as error:
            raise TypeError(
                f"method.state_dict() cannot be saved as JSON ({error}); expected numbers, strings, lists and dicts"
            ) from error


def _task_of(method: Any) -> Task | None:
    return getattr(method, "task", None) or getattr(getattr(method, "speq", None), "task", None)


@contextmanager
def _missing_named(task: Task | None, batch: Any) -> Iterator[None]:
    """Turn the KeyError of a task into a ValueError that names the missing key and says where batches come from."""
    try:
        yield
    except KeyError as error:
        key = error.args[0] if error.args else None
        if not isinstance(batch, Mapping) or key in batch:
            raise
        # A key that is no name is a number: the task reads batches that are tuples.
        sought = repr(key) if isinstance(key, str) and key.isidentifier() else "inputs and labels by number"
        reader = type(task).__name__ if task else "method"
        raise ValueError(
            f"{reader} looks for {sought} in the batch, which has {', '.join(batch)}; "
            "let the dataset and the data collator give it (columns that the network's forward does not name are "
            "dropped unless args.remove_unused_columns is False), or give the method a task that reads such batches"
        ) from error


@contextmanager
def _outputs_seen(model: nn.Module) -> Iterator[list[Any]]:
    """Collect what `model` returns inside the block."""
    seen: list[Any] = []
    hook = model.register_forward_hook(lambda module, args, output: seen.append(output))
    try:
        yield seen
    finally:
        hook.remove()


def _separate_ranges(optimizer: torch.optim.Optimizer, model: nn.Module, lr: float | None) -> None:
    """Move the ranges of quantizers to a new last group, without weight decay; lr: None for that of their old group."""
    ranges = {id(p) for m in model.modules() if isinstance(m, Quantizer) for p in m.parameters()}
    moved, settings = [], {}
    for group in optimizer.param_groups:
        group_ranges = [p for p in group["params"] if id(p) in ranges]
        if group_ranges:
            moved += group_ranges
            settings = settings or {k: v for k, v in group.items() if k != "params"}
            group["params"] = [p for p in group["params"] if id(p) not in ranges]
    if moved:
        lr = settings["lr"] if lr is None else lr
        optimizer.add_param_group({**settings, "params": moved, "weight_decay": 0.0, "lr": lr})
    elif lr is not None:
        raise ValueError(f"range_lr is {lr!r}, but the {type(optimizer).__name__} holds no range; expected None")


def _check_parameters(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    """Refuse an optimizer with parameters that are not those of `model`."""
    parameters = {id(p) for p in model.parameters()}
    foreign = sum(id(p) not in parameters for group in optimizer.param_groups for p in group["params"])
    if foreign:
        raise ValueError(
            f"the optimizer holds {foreign} parameters that are not the model's; make it of the prepared model, or "
            "leave optimizers out"
        )
