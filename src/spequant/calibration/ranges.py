"""`calibrate`: ranges from real data. Which rule picks a range is in `quantizers/ranges.py`."""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from spequant.calibration.batch_norm import modes_kept, reestimate_batch_norm
from spequant.calibration.batches import check_batches, run_model, samples_in
from spequant.layers import OUTPUT, act_quantizers, act_slots, weight_quantizers
from spequant.processes import gathered, world
from spequant.quantizers import Quantizer, Rule, least_squares

KEPT = 2**17  # values kept of each tensor over all batches
SIGN_TOLERANCE = 1e-3  # of max|x|: less than that below zero counts as unsigned


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    rule: Rule = least_squares,
    samples: int = 1024,
    reestimate: bool = True,
    run: Callable[[nn.Module, Any], Any] = run_model,
) -> None:
    """Give every quantizer of a prepared `model` its range, from the float network's activations.

    batches: of training data, augmented as in training where batch norm is re-estimated; read until `samples` samples
      have passed; anything that `run(model, batch)` understands, by default a tensor, (inputs, ...) or a dict of
      keyword arguments.
    rule: (quantizer, values) -> clip, of least squared error at the quantizer's bits by default; `percentile(99.9)`
      is the usual alternative. Quantizers with a rule of their own (MinMax) keep it.
    reestimate: batch norm's running statistics are then measured anew on the same batches, at low bits.

    Several processes: each gives its part of the samples; ranges follow from all of them and are the same everywhere.

    Decides which activations are signed (below -1/1000 of the largest magnitude). No parameter is replaced: an
    optimizer may be built before or after. Batch norm that its user froze keeps its statistics (`batch_norm.frozen`).
    ValueError: model not prepared, fewer samples than asked for, values that are not finite. RuntimeError: a quantized
    layer that never ran, or never on any value.
    """
    with torch.inference_mode(False):  # where the caller is in it: what is made here is trained later
        _calibrate(model, batches, rule, samples, reestimate, run)


def _calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    rule: Rule,
    samples: int,
    reestimate: bool,
    run: Callable[[nn.Module, Any], Any],
) -> None:
    acts, weights = act_quantizers(model), weight_quantizers(model)
    if not acts and not weights:
        raise ValueError("model holds no quantizer: call spequant.prepare first")
    if samples < 1:
        raise ValueError(f"samples is {samples!r}; expected 1 or more")
    kept = _read(batches, -(-samples // world()), run is run_model)
    watcher = _watch(model, [*acts.values(), *weights.values()], kept, run)
    _check_all_ran(watcher, [*acts.values(), *weights.values()])
    outputs = {id(getattr(module, a)) for _, module, a in act_slots(model) if a == OUTPUT}
    for q in act_quantizers(model).values():
        values = watcher.kept[q].values
        values = torch.cat(gathered(values.cpu())).to(values.device)
        ends = torch.cat(gathered(watcher.ends[q].values.cpu()))
        low, high = ends.min(), ends.max()
        if not torch.isfinite(ends).all():
            raise ValueError(
                f"{q.name}: its input holds NaN or Inf on the calibration data; look for them in the batches, and "
                "whether the float model gives finite logits on them"
            )
        if q.sign_open:
            q.set_signed(bool(low < -SIGN_TOLERANCE * torch.maximum(-low, high)))
        q.fit(values, _off_ties(rule) if id(q) in outputs else rule, ends.to(values.device))
    for q in weights.values():
        q.fit(watcher.weights[q], rule)
    if reestimate:
        reestimate_batch_norm(model, kept, run)


def _check_all_ran(watcher: "_Watcher", quantizers: list[Quantizer]) -> None:
    empty = [q.name for q in quantizers if q in watcher.empty and q not in watcher.kept]
    if empty:
        raise RuntimeError(
            f"layers that ran in {watcher.batches} batches, but on no value: {', '.join(empty)}. Give more or other "
            "data, on which experts get tokens and detectors find something, or leave them float: skip=[...]"
        )
    silent = [q.name for q in quantizers if q not in watcher.weights and q not in watcher.kept]
    if silent:
        raise RuntimeError(
            f"quantized layers that never ran in {watcher.batches} batches: {', '.join(silent)}. Other modules "
            "read their weights past their forward, or nothing uses them; leave them float: prepare(..., skip=[...])"
        )


def _off_ties(rule: Rule) -> Rule:
    """`rule` for a tensor that is rounded again by who reads it. Both ranges are round fractions of one largest value,
    so that whole codes of one grid may lie half-way between two of the other, where torch and an integer engine differ
    by their last bit; 1/8192 wider they do not."""
    if getattr(rule, "reads_ends", False):
        return rule
    return lambda quantizer, values: rule(quantizer, values) * (1 + 2**-13)


def _watch(
    model: nn.Module, quantizers: list[Quantizer], kept: list[Any], run: Callable[[nn.Module, Any], Any]
) -> "_Watcher":
    """What reaches each quantizer while the model runs float, in eval mode."""
    watcher = _Watcher(len(kept))
    try:
        for q in quantizers:
            q.watch = watcher
        with modes_kept(model), torch.no_grad():
            model.eval()
            for batch in kept:
                run(model, batch)
    finally:
        for q in quantizers:
            q.watch = None
    return watcher


def _read(batches: Iterable[Any], samples: int, inputs_first: bool) -> list[Any]:
    """The first batches that together hold `samples` samples; those that hold none are left out."""
    check_batches(batches, "batches")
    kept, seen = [], 0
    for batch in batches:
        count = samples_in(batch, inputs_first=inputs_first)
        if count is None:
            raise ValueError(
                f"batches hold {type(batch).__name__}s without a tensor; expected one, with a sample a row"
            )
        if count:
            kept.append(batch)
            seen += count
        if seen >= samples:
            return kept
    raise ValueError(
        f"batches held {seen} samples; expected at least samples={samples}. Give more data, or a smaller `samples` "
        "(ranges from few samples are uncertain)"
    )


class _Watcher:
    """Keeps of each quantizer's input a part and its extremes."""

    def __init__(self, batches: int):
        self.batches, self.per_batch = batches, max(1024, KEPT // batches)
        self.weights: dict[Quantizer, Tensor] = {}
        self.kept: dict[Quantizer, _Kept] = {}
        self.ends: dict[Quantizer, _Kept] = {}  # the least and largest value of each batch
        self.empty: set[Quantizer] = set()  # of which some batch held no value

    def __call__(self, quantizer: Quantizer, x: Tensor) -> None:
        if quantizer.of_weight:
            self.weights.setdefault(quantizer, x.detach())
            return
        flat = x.detach().float().flatten()
        if not len(flat):
            self.empty.add(quantizer)
            return
        stride = max(1, flat.numel() // self.per_batch)
        while math.gcd(stride, flat.numel()) > 1:  # so that every channel and column is met
            stride += 1
        part = flat[stride // 2 :: stride]
        self._keep(self.kept, quantizer, part)
        self._keep(self.ends, quantizer, torch.stack([flat.amin(), flat.amax()]))

    def _keep(self, where: dict[Quantizer, "_Kept"], quantizer: Quantizer, values: Tensor) -> None:
        if quantizer not in where:
            where[quantizer] = _Kept(values.new_empty(self.batches * len(values)))
        where[quantizer].add(values)


class _Kept:
    """Values from batch after batch, in one block: small copies, each made between the large tensors that come and go
    in a forward pass, would keep the allocator from using their places again (gigabytes with a BERT)."""

    def __init__(self, block: Tensor):
        self.block, self.filled = block, 0

    def add(self, values: Tensor) -> None:
        end = self.filled + len(values)
        if end > len(self.block):
            self.block = torch.cat([self.block, values.new_empty(max(end, len(self.block)))])
        self.block[self.filled : end] = values
        self.filled = end

    @property
    def values(self) -> Tensor:
        return self.block[: self.filled]
