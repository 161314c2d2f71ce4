"""Batch norm around quantization: modes for the teacher's pass, re-estimated statistics, several processes.

What batch norm does in one forward pass is set by a context manager. Running statistics are re-estimated after
calibration, because quantization shifts them. With several processes, batch statistics are taken over all of them.
"""

import itertools
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase
from torch.nn.modules.dropout import _DropoutNd

from spequant.calibration.batches import check_batches, modes_kept, run_model
from spequant.functional import all_reduce
from spequant.processes import average_over_processes, world
from spequant.recomputation import entered_again

Mode = Literal["leave", "update", "eval"]
MODES: tuple[Mode, ...] = ("leave", "update", "eval")


DROPOUT_ATTRIBUTES = ("dropout", "drop_prob", "attention_dropout", "attn_dropout", "dropout_p", "dropout_prob")
"""Attributes in which modules of torch, torchvision, timm and transformers keep a probability of dropout."""


@contextmanager
def batch_norm_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """Choose what batch norm does inside the `with` block; layers in eval mode are not touched.

    Args:
        model: Any network. Only batch norm in train mode that tracks running statistics is affected.
        mode: "leave" normalises by batch statistics and restores the running statistics at the end; "update"
            normalises by batch statistics and updates the running ones, as any training forward does; "eval"
            normalises by running statistics.

    Raises:
        ValueError: `mode` is none of these.
    """
    if mode not in MODES:
        raise ValueError(f"batch_norm is {mode!r}; expected one of {', '.join(map(repr, MODES))}")
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    # "leave" restores copies because a compiled model then runs the same graph as in the student's pass. With
    # `track_running_stats` switched off it would need a second graph. With momentum 0 it would still count batches, and
    # one Inf would turn the running statistics into NaN.
    running = [b for m in norms for b in m.buffers(recurse=False)] if mode == "leave" else []
    copies = [b.detach().clone() for b in running]
    try:
        if mode == "eval":
            for m in norms:
                m.training = False
        with entered_again(lambda: batch_norm_mode(model, mode)):
            yield
    finally:
        for m in norms:
            m.training = True
        if running:
            with torch.no_grad():
                torch._foreach_copy_(running, copies)  # type: ignore[attr-defined]


@contextmanager
def batch_norm_untracked(model: nn.Module) -> Iterator[None]:
    """Let batch norm in train mode use batch statistics, and neither read nor write running ones, inside the block.

    For a pass that is backpropagated together with the student's: autograd refuses that after `batch_norm_mode` has
    restored the running statistics, because it changed them in place.

    Args:
        model: Any network. Batch norm in eval mode is not touched.
    """
    norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training and m.track_running_stats]
    try:
        for m in norms:
            m.track_running_stats = False
        with entered_again(lambda: batch_norm_untracked(model)):
            yield
    finally:
        for m in norms:
            m.track_running_stats = True


@contextmanager
def dropout_off(model: nn.Module) -> Iterator[None]:
    """Switch dropout and stochastic depth off inside the block, also in train mode.

    That of attention and recurrent modules as well, which keep their probability as a number (`DROPOUT_ATTRIBUTES`).
    """
    with ExitStack() as undo:
        for m in model.modules():
            is_dropout = isinstance(m, _DropoutNd) or type(m).__name__ in ("StochasticDepth", "DropPath")
            for attribute in ("p", *DROPOUT_ATTRIBUTES) if is_dropout else DROPOUT_ATTRIBUTES:
                value = vars(m).get(attribute)
                if isinstance(value, int | float) and not isinstance(value, bool):
                    undo.callback(setattr, m, attribute, value)
                    setattr(m, attribute, 0.0)
        yield


def is_frozen(norm: _BatchNorm, model: nn.Module) -> bool:
    """Tell whether the user froze the batch norm `norm` of `model`.

    It counts as frozen if it is in eval mode while `model` is in train mode, if it has parameters and none of them
    requires a gradient, or if its momentum is 0.
    """
    parameters = list(norm.parameters(recurse=False))
    learns_nothing = bool(parameters) and not any(p.requires_grad for p in parameters)
    return learns_nothing or norm.momentum == 0 or (model.training and not norm.training)


@torch.no_grad()
def reestimate_batch_norm(
    model: nn.Module, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any] = run_model
) -> None:
    """Replace the running statistics of batch norm by their mean over `batches`, with dropout off.

    The model runs at the precision in use, and the mode of each module is restored at the end. A batch norm that its
    user froze (`is_frozen`) keeps its statistics and normalises by them. A batch norm that ran on no batch keeps its
    statistics as well. Without batch norm to measure nothing happens, and no batch is read. After an error, all
    statistics are as before.

    Args:
        model: Any network, prepared or float.
        batches: Batches that `run` understands. With several processes, each passes the same number of different
            batches, and all of them end with the mean over all processes.
        run: Called as `run(model, batch)` once per batch; by default `run_model`.

    Raises:
        ValueError: There is no batch, or a batch holds a single sample, which has no variance.
    """
    check_batches(batches, "batches")
    norms = reestimated(model)
    if not norms:
        return
    running = [b for m in norms for b in m.buffers(recurse=False)]
    before, momenta = [b.clone() for b in running], [m.momentum for m in norms]
    count, hooks = 0, [m.register_forward_pre_hook(_averaging()) for m in norms]
    try:
        with dropout_off(model), modes_kept(model):
            others = [m for m in model.modules() if isinstance(m, _BatchNorm) and m not in norms]
            model.train()
            for m in others:
                m.eval()
            for m in norms:
                m.num_batches_tracked.zero_()  # type: ignore[union-attr]
            for count, batch in enumerate(batches, start=1):
                _run_one(model, batch, count, run)
        if not count:
            raise ValueError(
                "batches are empty (an iterator that was read before?); expected at least one to measure on"
            )
    except BaseException:
        for b, value in zip(running, before, strict=True):
            b.copy_(value)
        raise
    finally:
        for m, momentum, hook in zip(norms, momenta, hooks, strict=True):
            m.momentum = momentum
            hook.remove()
    average_over_processes(running)


def reestimated(model: nn.Module) -> list[_BatchNorm]:
    """Return the batch norms of `model` whose statistics `reestimate_batch_norm` replaces."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    return [m for m in norms if not is_frozen(m, model)]


def _averaging() -> Callable[[nn.Module, Any], None]:
    """Make a hook that lets one batch norm average over all its calls.

    torch does so where the momentum is None, but then reads the number of calls from the device at each of them.
    """
    calls = itertools.count(1)

    def weigh(norm: Any, args: Any) -> None:
        norm.momentum = 1.0 / next(calls)

    return weigh


def _run_one(model: nn.Module, batch: Any, number: int, run: Callable[[nn.Module, Any], Any]) -> None:
    """Run one batch, and turn torch's error about a single sample into one that says what to do."""
    try:
        run(model, batch)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"batch {number} holds a single sample (often the last batch of a data set does), of which batch norm has "
            "no variance. Leave it out (drop_last=True of a DataLoader), or pass reestimate=False"
        ) from error


class SyncBatchNorm(_BatchNorm):
    """Batch norm whose batch statistics are taken over all processes, on any device.

        y = (x - mean) / sqrt(var + eps) * weight + bias

    Mean and variance are computed in fp32, by two sums over the processes. In eval mode, or with one process, it is
    plain batch norm. torch's class of the same name runs only on GPUs.

    Shape:
        Input and output: (batch, channels, ...).
    """

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"input has shape {tuple(input.shape)}; expected (batch, channels, ...)")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world() == 1:
            return super().forward(input)
        self._check_input_dim(input)
        axes = [d for d in range(input.dim()) if d != 1]
        shape = [1, -1] + [1] * (input.dim() - 2)
        x = input.float()
        values = x.new_tensor([input.numel() // input.shape[1]])
        sums = all_reduce(torch.cat([x.sum(axes), values]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = x - mean.view(shape)
        var = all_reduce(centred.square().sum(axes)) / count
        if self.track_running_stats:
            self._track(mean.detach(), var.detach() * count / (count - 1))
        y = centred * torch.rsqrt(var + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor) -> None:
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        share = self.num_batches_tracked.reciprocal() if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(var, share)


PLAIN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward, SyncBatchNorm.forward)
"""Forward methods that compute only batch norm. A subclass with another forward computes something more."""


def synchronise_batch_norm(model: nn.Module) -> None:
    """Replace every batch norm in `model`, in place, by one with batch statistics over all processes.

    On a GPU that is torch's `nn.SyncBatchNorm`, elsewhere the `SyncBatchNorm` of this file. The parameter and buffer
    objects stay the same, and so do hooks and the quantizers of outputs.

    Args:
        model: Any network.

    Raises:
        ValueError: A batch norm has its own forward, which would be lost (timm's includes an activation).
    """
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and type(module).forward not in PLAIN_FORWARDS:
            raise ValueError(
                f"{name} is a {type(module).__name__}, which does more than batch norm and cannot be synchronised: "
                "train with sync_batch_norm False (--train.no-sync-batch-norm)"
            )
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if isinstance(child, _BatchNorm) and not isinstance(child, SyncBatchNorm | nn.SyncBatchNorm):
                tensor = next(child.buffers(recurse=False), None)
                on_gpu = tensor is not None and tensor.device.type == "cuda"
                kind = nn.SyncBatchNorm if on_gpu else SyncBatchNorm
                new = kind(child.num_features, child.eps, child.momentum, child.affine, child.track_running_stats)
                vars(new).update(vars(child))  # with its hooks and the quantizer of its output
                setattr(parent, name, new)
