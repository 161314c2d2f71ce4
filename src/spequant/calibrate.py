"""`calibrate`: ranges from real data. Which rule picks a range is in `quantizers/ranges.py`."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spequant.batch_norm import check_batches, modes_kept, reestimate_batch_norm, run_model
from spequant.layers import OUTPUT, act_quantizers, act_slots, weight_quantizers
from spequant.prepare import share
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

    Decides which activations are signed (below -1/1000 of the largest magnitude). Layers found to read one and the same
    tensor at the same bits come to share one quantizer, so build the optimizer afterwards.
    ValueError: model not prepared, fewer samples than asked for, values that are not finite. RuntimeError: a quantized
    layer that never ran.
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
    kept = _read(batches, -(-samples // world()))
    watcher = _watch(model, [*acts.values(), *weights.values()], kept, run)
    silent = [q.name for q in (*acts.values(), *weights.values()) if not watcher.saw(q)]
    if silent:
        raise RuntimeError(
            f"quantized layers that never ran in {len(kept)} batches: {', '.join(silent)}. Other modules "
            "read their weights past their forward, or nothing uses them; leave them float: prepare(..., skip=[...])"
        )
    share(model, _groups(model, watcher))
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
                watcher.next_batch()
    finally:
        for q in quantizers:
            q.watch = None
    return watcher


def _read(batches: Iterable[Any], samples: int) -> list[Any]:
    """The first batches that together hold `samples` samples."""
    check_batches(batches, "batches")
    kept, seen = [], 0
    for batch in batches:
        tensor = _first_tensor(batch)
        if tensor is None:
            raise ValueError(
                f"batches hold {type(batch).__name__}s without a tensor; expected one, with a sample a row"
            )
        kept.append(batch)
        seen += len(tensor)
        if seen >= samples:
            return kept
    raise ValueError(
        f"batches held {seen} samples; expected at least samples={samples}. Give more data, or a smaller `samples` "
        "(ranges from few samples are uncertain)"
    )


def _first_tensor(batch: Any) -> Tensor | None:
    """The first one inside with a dimension, which tells how many samples there are."""
    if isinstance(batch, Tensor):
        return batch if batch.dim() else None
    parts = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, list | tuple) else ()
    return next((found for part in parts if (found := _first_tensor(part)) is not None), None)


class _Watcher:
    """Keeps of each quantizer's input a part and its extremes, and which quantizers saw one and the same tensor."""

    def __init__(self, batches: int):
        self.batches, self.per_batch = batches, max(1024, KEPT // batches)
        self.weights: dict[Quantizer, Tensor] = {}
        self.kept: dict[Quantizer, _Kept] = {}
        self.ends: dict[Quantizer, _Kept] = {}  # the least and largest value of each batch
        self.inputs: list[Tensor] | None = []
        self.sources: dict[Quantizer, tuple[tuple[int, int], ...]] = {}

    def __call__(self, quantizer: Quantizer, x: Tensor) -> None:
        if quantizer.of_weight:
            self.weights.setdefault(quantizer, x.detach())
            return
        if self.inputs is not None:
            self.inputs.append(x)  # held, so that no other tensor takes its id within the batch
            self.sources[quantizer] = (*self.sources.get(quantizer, ()), (id(x), 0 if x.is_inference() else x._version))
        flat = x.detach().float().flatten()
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

    def saw(self, quantizer: Quantizer) -> bool:
        return quantizer in self.weights or quantizer in self.kept

    def next_batch(self) -> None:
        self.inputs = None  # the first batch tells who shares; its tensors can go


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


def _groups(model: nn.Module, watcher: _Watcher) -> list[list[tuple[nn.Module, str]]]:
    """Activation slots that read the same tensor, or tensors, with equal quantizers."""
    groups: dict[Any, list[tuple[nn.Module, str]]] = {}
    for _, module, attribute in act_slots(model):
        q = getattr(module, attribute)
        key = (watcher.sources.get(q, id(q)), type(q), tuple(sorted(q.config().items(), key=str)))
        groups.setdefault(str(key), []).append((module, attribute))
    return [g for g in groups.values() if len(g) > 1]
