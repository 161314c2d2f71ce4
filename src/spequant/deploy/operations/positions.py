"""What takes several positions together: windows that move (pooling), and all positions at once."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from spequant.deploy.grids import Grid
from spequant.deploy.operations.layer import Weighted
from spequant.deploy.operations.moving import repeated
from spequant.deploy.operations.operation import Lowering, Operation, Read, Step
from spequant.deploy.operations.shaping import reshape_step
from spequant.deploy.operations.windows import grown, joined, last_window, padded, sides

POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def _pool(kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1, **rest: Any) -> dict[str, Any]:
    if rest.get("return_indices") or any(d != 1 for d in (dilation if isinstance(dilation, tuple) else (dilation,))):
        raise ValueError("max pooling with dilation or indices has no integer form")
    return {"kernel": kernel_size, "stride": stride, "padding": padding, "ceil": bool(rest.get("ceil_mode"))}


def _max(m: Any) -> dict[str, Any]:
    return _pool(m.kernel_size, m.stride, m.padding, m.dilation, return_indices=m.return_indices, ceil_mode=m.ceil_mode)


def _mean_pool(
    kernel_size: Any,
    stride: Any = None,
    padding: Any = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> dict[str, Any]:
    if divisor_override is not None:
        raise ValueError(f"divisor_override {divisor_override} has no integer form; expected None")
    form = {"kernel": kernel_size, "stride": stride, "padding": padding}
    return {**form, "ceil": ceil_mode, "counts_padding": count_include_pad}


def _mean(m: Any) -> dict[str, Any]:
    return _mean_pool(
        m.kernel_size, m.stride, m.padding, m.ceil_mode, m.count_include_pad, getattr(m, "divisor_override", None)
    )


def _window(step: Step) -> dict[str, Any]:
    """Kernel, stride and padding of a pooling `step`, one number per dimension; padding behind the positions as far as
    the last window reaches."""
    spatial = len(step.shape) - 2
    a = step.attributes

    def each(value: Any) -> tuple[int, ...]:
        return (value,) * spatial if isinstance(value, int) else tuple(value) * (spatial // len(tuple(value)))

    if spatial not in POOL:
        raise ValueError(f"pooling on {len(step.shape)} dimensions has no form here; expected 3 to 5, batch first")
    kernel, padding = each(a["kernel"]), each(a["padding"])
    stride = kernel if a["stride"] in (None, ()) else each(a["stride"])
    if a["ceil"]:
        sizes = zip(step.inputs[0].shape[2:], kernel, stride, padding, step.shape[2:], strict=True)
        after = [max(p, last_window(n, k, s, p, out)) for n, k, s, p, out in sizes]
        padding = joined(padding, after)
    return {"kernel": kernel, "stride": stride, "padding": padding}


@dataclass(eq=False)
class MaxPool(Operation):
    """The largest number of each window; padding never wins, as `windows.sides` reads it."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()

    WORD = "max_pool"
    COMMUTES = True
    MODULES: ClassVar[dict[type, Read]] = dict.fromkeys((nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d), _max)
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys(
        (F.max_pool1d, F.max_pool2d, F.max_pool3d, torch.max_pool1d, torch.max_pool2d, torch.max_pool3d), _pool
    )

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        padding = self.padding
        if len(padding) != len(self.kernel):
            x, padding = padded(x, padding, -inf), 0
        return POOL[len(self.kernel)](x, self.kernel, self.stride, padding)

    @classmethod
    def settled(cls, step: Step) -> Step:
        window = _window(step)
        return Step(step.name, cls, step.inputs, step.shape, window)


@dataclass(eq=False)
class AvgPool(Operation):
    """The mean of each window; counts_padding: whether the zeros around the positions count."""

    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    counts_padding: bool = True

    WORD = "avg_pool"
    MODULES: ClassVar[dict[type, Read]] = dict.fromkeys((nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d), _mean)
    FUNCTIONS: ClassVar[dict[Any, Read]] = dict.fromkeys(
        (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, torch.avg_pool1d), _mean_pool
    )

    @property
    def in_float(self) -> bool:
        return self.inputs[0].grid is None

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        x = self.values(inputs)[0]
        counted = 1.0 if self.counts_padding else 0.0
        counts = self._sums(padded(torch.ones_like(x[:1, :1]), self.padding, counted))
        return self._sums(padded(x, self.padding)) * (unit(self) / counts)

    def _sums(self, x: Tensor) -> Tensor:
        """Of windows, each a whole number on codes, exact in fp32."""
        kernel, stride = self.kernel, self.stride
        if len(kernel) == 3:
            return F.avg_pool3d(x, kernel, stride, divisor_override=1)
        if len(kernel) == 1:
            return F.avg_pool2d(x.unsqueeze(2), (1, *kernel), (1, *stride), divisor_override=1).squeeze(2)
        return F.avg_pool2d(x, kernel, stride, divisor_override=1)

    @classmethod
    def settled(cls, step: Step) -> Step:
        """Zeros that are put around its input before it count."""
        counts, form, source = step.attributes["counts_padding"], _window(step), step.inputs[0]
        before, after = sides(form["padding"], len(form["kernel"]))
        if step.attributes["ceil"] and before != after and counts:
            if any(before):
                raise ValueError(
                    "average pooling with ceil_mode, padding and count_include_pad, whose last window is not full, has "
                    "no integer form; expected count_include_pad=False"
                )
            counts = False
        margins = source.kind.margins(source)
        if margins is not None and (counts or not any((*before, *after))):
            source, form["padding"], counts = source.inputs[0], grown(form["padding"], margins), True
        counts = counts or not any(form["padding"])
        whole = source.shape[2:] == form["kernel"] and not any(form["padding"])
        if whole and set(step.shape[2:]) == {1}:
            return Step(step.name, Mean, (source,), step.shape, {"keep": True})
        return Step(step.name, cls, (source,), step.shape, {**form, "counts_padding": counts})

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
        """Where every window counts alike, a convolution with equal weights, which engines compute several times faster
        (64 channels of 56 x 56, windows of 3 x 3, one thread: onnxruntime 0.15 ms, its AveragePool 2.0)."""
        if grid is None or step.inputs[0].own_grid is None or not step.attributes["counts_padding"]:
            return _of_codes(cls, step, grid, at)
        kernel, channels = step.attributes["kernel"], step.shape[1]
        weight = torch.ones(channels, 1, *kernel, dtype=torch.int16)
        scale = torch.full((channels,), 1 / prod(kernel), dtype=torch.float64)
        window = step.attributes["stride"], step.attributes["padding"], (1,) * len(kernel)
        numbers = weight, scale, torch.zeros_like(scale)
        inputs = (at.value(step.inputs[0]),)
        return at.add(Weighted(step.name, inputs, grid, step.shape, *numbers, *window, channels))


def _of_codes(kind: type[Operation], step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
    """`step` on `grid` where its input is codes; means of float values are rounded after."""
    if grid is None or step.inputs[0].own_grid is None:
        return None
    return at.add(kind(step.name, (at.value(step.inputs[0]),), grid, step.shape, **step.attributes))


def unit(op: Operation) -> Tensor:
    """Of sums of the numbers that `op` computes on, in steps of its grid, fp32."""
    source = op.inputs[0].grid
    if op.grid is None or source is None:
        return torch.tensor(1.0)
    return torch.tensor(source.step, dtype=torch.float32) / op.grid.step


def _over(dim: Any = None, keepdim: bool = False, **_: Any) -> dict[str, Any]:
    return {"over": dim, "keep": keepdim}


def _dims(step: Step) -> tuple[int, ...]:
    """What `step` takes together, of its input's dimensions, in ascending order. ValueError: the batch."""
    over, rank = step.attributes["over"], len(step.inputs[0].shape)
    dims = tuple(sorted({d % rank for d in ((over,) if isinstance(over, int) else over or range(rank))}))
    if dims[0] == 0:
        raise ValueError(f"{step.kind.WORD} over {over} takes the batch too, which has no form here; expected others")
    return dims


@dataclass(eq=False)
class Amax(Operation):
    """The largest number over all positions, or over `dims`; keep: their axes stay, with one position."""

    keep: bool = False
    dims: tuple[int, ...] = ()

    WORD = "amax"
    COMMUTES = True
    FUNCTIONS: ClassVar[dict[Any, Read]] = {torch.amax: _over}
    METHODS: ClassVar[dict[str, Read]] = {"amax": _over}

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        (x,) = self.values(inputs)
        return x.amax(self.dims or tuple(range(2, x.dim())), keepdim=self.keep)

    @classmethod
    def settled(cls, step: Step) -> Step:
        return _settled(cls, step)


@dataclass(eq=False)
class Mean(Operation):
    """The mean over all positions, or over `dims`; keep: their axes stay, with one position."""

    keep: bool = False
    dims: tuple[int, ...] = ()

    WORD = "mean"
    FUNCTIONS: ClassVar[dict[Any, Read]] = {torch.mean: _over}
    METHODS: ClassVar[dict[str, Read]] = {"mean": _over}

    @property
    def in_float(self) -> bool:
        return self.inputs[0].grid is None

    def compute(self, inputs: Sequence[Tensor]) -> Tensor:
        x = self.values(inputs)[0]
        dims = self.dims or tuple(range(2, x.dim()))
        if self.grid is None:
            return x.mean(dims, keepdim=self.keep)
        return x.sum(dims, keepdim=self.keep) * (unit(self) / prod(x.shape[d] for d in dims))

    @classmethod
    def settled(cls, step: Step) -> Step:
        """Of a mean over others, both at once."""
        return _settled(cls, step)

    @classmethod
    def arising(cls, step: Step, grid: Grid | None, at: Lowering) -> Operation | None:
        return _of_codes(cls, step, grid, at)


def _settled(kind: type[Operation], step: Step) -> Step:
    """A mean or maximum, and one before it together; over all positions of several dimensions, or over `dims`."""
    source, dims, keep = step.inputs[0], _dims(step), step.attributes["keep"]
    if source.kind is kind:
        before = source.attributes["dims"] or tuple(range(2, len(source.inputs[0].shape)))
        left = [d for d in range(len(source.inputs[0].shape)) if source.attributes["keep"] or d not in before]
        dims = tuple(sorted({*before, *(left[d] for d in dims)}))
        source, keep = source.inputs[0], keep and source.attributes["keep"]
        full = [1 if d in dims else n for d, n in enumerate(source.shape)]
        if not keep and len(step.shape) != len(source.shape) - len(dims):
            kept = Step(step.name, kind, (source,), tuple(full), {"keep": True, "dims": dims})
            return reshape_step(_positions(kept), step.shape, step.name)
    return _positions(Step(step.name, kind, (source,), step.shape, {"keep": keep, "dims": dims}))


def _positions(step: Step) -> Step:
    """`step` with no `dims` where these are all positions."""
    rank = len(step.inputs[0].shape)
    if step.attributes["dims"] == tuple(range(2, rank)) and rank > 2:
        step.attributes = {**step.attributes, "dims": ()}
    return step


ADAPTIVE: dict[type[Operation], Any] = {
    AvgPool: (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
    MaxPool: (nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
}
FUNCTIONAL: dict[type[Operation], Any] = {
    AvgPool: (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d),
    MaxPool: (F.adaptive_max_pool1d, F.adaptive_max_pool2d, F.adaptive_max_pool3d),
}


def _adaptive(kind: type[Operation]) -> Read:
    return lambda *_, **__: {"kind": kind}


@dataclass(eq=False)
class Adaptive(Operation):
    """Pooling to a number of positions. In no program: pooling where that divides those that there are, upsampling
    where it is a multiple of them."""

    WORD = "adaptive pooling"
    MODULES: ClassVar[dict[type, Read]] = {m: _adaptive(kind) for kind, ms in ADAPTIVE.items() for m in ms}
    FUNCTIONS: ClassVar[dict[Any, Read]] = {f: _adaptive(kind) for kind, fs in FUNCTIONAL.items() for f in fs}

    @classmethod
    def settled(cls, step: Step) -> Step:
        kind, source = step.attributes["kind"], step.inputs[0]
        pairs = list(zip(source.shape[2:], step.shape[2:], strict=True))
        if any(n % out and out % n for n, out in pairs):
            raise ValueError(
                f"adaptive pooling of {source.shape[2:]} to {step.shape[2:]} positions has no integer form; expected "
                "sizes that divide each other: other images, or another output_size"
            )
        kernel = tuple(max(1, n // out) for n, out in pairs)
        if set(kernel) != {1}:
            shape = (*source.shape[:2], *(n // k for (n, _), k in zip(pairs, kernel, strict=True)))
            if set(shape[2:]) == {1}:
                total = Amax if kind is MaxPool else Mean
                source = Step(step.name, total, (source,), shape, {"keep": True, "dims": ()})
            else:
                window: dict[str, Any] = {"kernel": kernel, "stride": kernel, "padding": (0,) * len(kernel)}
                window |= {} if kind is MaxPool else {"counts_padding": True}
                source = Step(step.name, kind, (source,), shape, window)
        return repeated(source, step.shape, step.name)
