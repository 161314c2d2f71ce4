"""`calibrate`: ranges of quantizers from real data. The rules that pick a range are in `quantizers/ranges.py`."""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from spequant.calibration.batch_norm import reestimate_batch_norm
from spequant.calibration.batches import check_batches, modes_kept, run_model, samples_in
from spequant.layers import OUTPUT, act_quantizers, act_slots, weight_quantizers
from spequant.processes import gathered, world
from spequant.quantizers import Quantizer, Rule, least_squares

VALUES_PER_TENSOR = 2**17
"""How many values of each tensor are stored, over all batches together."""
SIGN_TOLERANCE = 1e-3
"""A tensor whose minimum is above -SIGN_TOLERANCE * max|x| counts as unsigned."""


def calibrate(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    rule: Rule = least_squares,
    samples: int = 1024,
    reestimate: bool = True,
    run: Callable[[nn.Module, Any], Any] = run_model,
) -> None:
    """Give every quantizer of a prepared `model` its range, from the activations of the float network.

    The signs of activations are decided here, too: an activation is signed if it goes below -1/1000 of its largest
    magnitude. No parameter object is replaced, so that an optimizer may be made before or after.

    Args:
        model: What `prepare` returned.
        batches: Batches of training data, read until `samples` samples have passed. They should be augmented as in
            training where batch norm is re-estimated. With several processes, each passes its part of the samples;
            ranges follow from all of them and are the same everywhere.
        rule: (quantizer, values) -> clip. The default minimises the squared error at the quantizer's bits;
            `percentile(99.9)` is the usual alternative. Quantizers with their own rule (MinMax) keep it.
        samples: How many samples are read, over all processes together, 1 or more.
        reestimate: Whether the running statistics of batch norm are measured anew on the same batches, with quantized
            weights and activations. Frozen batch norm keeps its statistics (see `batch_norm.is_frozen`).
        run: Called as `run(model, batch)`. By default a batch is a tensor, (inputs, ...) or a dict of keyword
            arguments.

    Raises:
        ValueError: The model is not prepared, `samples` is below 1, there are fewer samples than that, or weights or
            activations are not finite; then no range has changed.
        RuntimeError: A quantized layer never ran, or only on empty tensors; or the model is inside a precision context.
    """
    with torch.inference_mode(False):  # the caller may be in inference mode, but these ranges are trained later
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
    if isinstance(samples, bool) or not isinstance(samples, int) or samples < 1:
        raise ValueError(f"samples is {samples!r}; expected 1 or more, a whole number")
    for q in acts.values():
        if q.levels is not q.home_levels:
            raise RuntimeError(
                f"{q.name}: the model is inside a precision context, and ranges are for the bits that it trains at; "
                "leave the `with` block before calibrating"
            )
    batches = _read(batches, -(-samples // world()), run is run_model)
    watcher = _watch(model, [*acts.values(), *weights.values()], batches, run)
    _check_all_ran(watcher, [*acts.values(), *weights.values()])
    ends = {q: torch.cat(gathered(watcher.ends[q].values.cpu())) for q in acts.values()}
    _check_finite(ends, watcher.weights)
    outputs = {id(getattr(module, a)) for _, module, a in act_slots(model) if a == OUTPUT}
    for q in acts.values():
        values = watcher.samples[q].values
        values = torch.cat(gathered(values.cpu())).to(values.device)
        low, high = ends[q].min(), ends[q].max()
        if q.sign_open:
            q.set_signed(bool(low < -SIGN_TOLERANCE * torch.maximum(-low, high)))
        q.fit(values, _off_ties(rule) if id(q) in outputs else rule, ends[q].to(values.device))
    for q in weights.values():
        q.fit(watcher.weights[q], rule)
    if reestimate:
        reestimate_batch_norm(model, batches, run)


def _check_all_ran(watcher: "_Watcher", quantizers: list[Quantizer]) -> None:
    """Refuse layers whose quantizers saw no value."""
    empty = [q.name for q in quantizers if q in watcher.empty and q not in watcher.samples]
    if empty:
        raise RuntimeError(
            f"layers that ran in {watcher.batches} batches, but on no value: {', '.join(empty)}. Give more or other "
            "data, on which experts get tokens and detectors find something, or leave these layers float: skip=[...]"
        )
    silent = [q.name for q in quantizers if q not in watcher.weights and q not in watcher.samples]
    if silent:
        raise RuntimeError(
            f"quantized layers that never ran in {watcher.batches} batches: {', '.join(silent)}. Another module reads "
            "their weights without calling them, or nothing uses them; leave them float: prepare(..., skip=[...])"
        )


def _check_finite(ends: Mapping[Quantizer, Tensor], weights: Mapping[Quantizer, Tensor]) -> None:
    """Refuse NaN and Inf, before any range is changed."""
    for q, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(f"{q.name}: its weight holds NaN or Inf; expected finite values: load another state")
    for q, extremes in ends.items():
        if not torch.isfinite(extremes).all():
            raise ValueError(
                f"{q.name}: its input holds NaN or Inf on the calibration data; look for them in the batches, and "
                "whether the float model gives finite logits on them"
            )


def _off_ties(rule: Rule) -> Rule:
    """Return `rule`, 1/8192 wider, for a tensor that its readers quantize a second time.

    Both ranges are round fractions of the same largest value. Codes of one grid may therefore lie exactly half-way
    between two codes of the other, where torch and an integer engine round differently by their last bit. The wider
    range avoids such ties.
    """
    if getattr(rule, "reads_ends", False):
        return rule
    return lambda quantizer, values: rule(quantizer, values) * (1 + 2**-13)


def _watch(
    model: nn.Module, quantizers: list[Quantizer], batches: list[Any], run: Callable[[nn.Module, Any], Any]
) -> "_Watcher":
    """Record what reaches each quantizer while the model runs in float, in eval mode."""
    watcher, before = _Watcher(len(batches)), [q.watch for q in quantizers]
    try:
        for q in quantizers:
            q.watch = watcher
        with modes_kept(model), torch.no_grad():
            model.eval()
            for batch in batches:
                run(model, batch)
    finally:
        for q, stand_in in zip(quantizers, before, strict=True):
            q.watch = stand_in
    return watcher


def _read(batches: Iterable[Any], samples: int, inputs_first: bool) -> list[Any]:
    """Read batches until they hold `samples` samples together; empty batches are left out."""
    check_batches(batches, "batches")
    read, seen = [], 0
    for batch in batches:
        count = samples_in(batch, inputs_first=inputs_first)
        if count is None:
            raise ValueError(
                f"batches hold {type(batch).__name__}s without a tensor; expected one, with one sample per row"
            )
        if count:
            read.append(batch)
            seen += count
        if seen >= samples:
            return read
    raise ValueError(
        f"batches held {seen} samples; expected at least samples={samples}. Give more data, or a smaller `samples` "
        "(ranges from few samples are uncertain)"
    )


class _Watcher:
    """Stores a sample of the values that reach each activation quantizer and their extremes, and each weight.

    Attributes:
        samples: Values spread evenly over each input, `per_batch` or a few more per call.
        ends: The least and the largest value of each call.
        weights: The weight of each weight quantizer.
        empty: Quantizers that were called with an empty tensor at least once.
    """

    def __init__(self, batches: int):
        self.batches, self.per_batch = batches, max(1024, VALUES_PER_TENSOR // batches)
        self.weights: dict[Quantizer, Tensor] = {}
        self.samples: dict[Quantizer, _Values] = {}
        self.ends: dict[Quantizer, _Values] = {}
        self.empty: set[Quantizer] = set()

    def __call__(self, quantizer: Quantizer, x: Tensor) -> Tensor:
        if quantizer.of_weight:
            self.weights.setdefault(quantizer, x.detach())
            return x
        flat = x.detach().float().flatten()
        if not len(flat):
            self.empty.add(quantizer)
            return x
        stride = max(1, flat.numel() // self.per_batch)
        while math.gcd(stride, flat.numel()) > 1:  # so that the stride reaches every channel and column
            stride += 1
        part = flat[stride // 2 :: stride]
        self._store(self.samples, quantizer, part)
        self._store(self.ends, quantizer, torch.stack([flat.amin(), flat.amax()]))
        return x

    def _store(self, target: dict[Quantizer, "_Values"], quantizer: Quantizer, values: Tensor) -> None:
        if quantizer not in target:
            target[quantizer] = _Values(values.new_empty(self.batches * len(values)))
        target[quantizer].add(values)


class _Values:
    """Values of all batches in one block of memory.

    Many small copies, made between the large tensors of a forward pass, would fragment memory: the allocator could not
    use the places of those tensors again (gigabytes with a BERT).
    """

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
