"""What every quantizer shares: bits, levels, sign, calibration, and the checks on its state.

A paper's formula does not belong here; it has a file of its own beside this one.
"""

import inspect
import threading
import zlib
from collections.abc import Callable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn

from spequant.functional import dequantize, fake_quantize, quantize
from spequant.quantizers.settings import QuantizerSettings, give_settings

Rule = Callable[["Quantizer", Tensor], Tensor]
"""(quantizer, values) -> clip: how calibration chooses the end of a stored range. See `ranges.py`."""


def check_bits(bits: object, argument: str, *, both_signs: bool = False, or_float: bool = False) -> None:
    """ValueError, naming `argument`, unless `bits` is a whole number from 1 to 8.

    both_signs: of a grid with values on both sides of zero, which takes 2 bits. or_float: or None.
    """
    if bits is None and or_float:
        return
    least = 2 if both_signs else 1
    if isinstance(bits, bool) or not isinstance(bits, int) or not least <= bits <= 8:
        reason = ": one bit has no grid of values on both sides of zero" if both_signs else ""
        other = ", or None to leave it float" if or_float else ""
        raise ValueError(f"{argument} is {bits!r}; expected a whole number of bits from {least} to 8{reason}{other}")


def level_tensor(levels: int, like: Tensor | None = None) -> Tensor:
    """A number of levels as the 0-dim fp32 tensor that a quantizer holds: data, so that a change recompiles nothing."""
    return torch.tensor(float(levels), device=None if like is None else like.device)


class Quantizer(nn.Module):
    """Rounds a tensor to a few equally spaced values between two bounds.

    A subclass says where the bounds are (`bounds`), and, where it stores a range (`new_range`), how a clip becomes one
    (`set_clip`, `bounds_at`). `bits` fixes the home grid that it trains at; `levels` is the grid in use, which
    `spequant.precision` replaces for a while, in one thread, without moving the bounds.

    bits: 1 to 8, or None: the tensor passes as it is.
    signed: False: grid over [0, high]; True: zero or the middle of the range inside; None: calibration decides.
    shape: of the range: () for one a tensor, e.g. (channels, 1, 1, 1) for one a channel of a convolution's weight.
    of_weight: quantizes a weight (signed, the whole tensor at hand) rather than an activation (first axis: samples).
    """

    stored = True  # a range kept between forwards; False: the bounds follow from the tensor alone
    fits_few = True  # False: bounds right for many values alone, so that a depthwise weight gets another quantizer
    vanishes = False  # True: the bounds of a weight that is zero throughout are zero
    rule: Rule | None = None  # the quantizer's own way to choose its clip; None: the one given to calibrate
    weights_only = False  # for weights alone: the grid leaves zero out, or the range follows from each tensor anew
    saturate = True
    inner = False
    ewgs: float | None = 0.0  # see ewgs.py; None: not to be had
    padding: int | None = None  # of an embedding's table: the row that stands for padding; written by prepare
    Settings: ClassVar[type[QuantizerSettings]]  # how recipes choose it; each subclass has one, see settings.py

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        give_settings(cls)

    def __init__(
        self, bits: int | None, *, signed: bool | None = None, shape: tuple[int, ...] = (), of_weight: bool = False
    ):
        super().__init__()
        check_bits(bits, "bits", or_float=True)
        self.bits, self.signed, self.shape, self.of_weight = (
            bits,
            True if of_weight else signed,
            tuple(shape),
            of_weight,
        )
        self.sign_open = self.signed is None  # calibration decides, each time
        self.name = ""  # where it sits in the model; written by prepare
        self.calibrated = not self.stored
        self.watch: Callable[[Quantizer, Tensor], None] | None = None
        self._switched_by: int | None = None  # the thread inside whose precision context it is
        self.home_levels = self._levels = level_tensor(2 if bits is None else self.level_count())
        self.frozen: Tensor | None
        self.frozen_codes: Tensor | None
        self.register_buffer("frozen", None)  # bool: elements of a weight held at a code, by train/freezing.py;
        self.register_buffer("frozen_codes", None)  # uint8: that code, and where none is held anything

    @property
    def levels(self) -> Tensor:
        """Number of levels of the grid in use, 0-dim fp32: that of the home grid, but where the running thread has
        switched it. A compiled model has what any thread has set; a replica of DataParallel what its model had."""
        if torch.compiler.is_compiling() or getattr(self, "_is_replica", False):
            return self._levels
        return self._levels if self._switched_by in (None, threading.get_ident()) else self.home_levels

    @levels.setter
    def levels(self, number: Tensor) -> None:
        home, thread = number is self.home_levels, threading.get_ident()
        if self._switched_by not in (None, thread):
            raise RuntimeError(
                f"{self.name or type(self).__name__}: another thread runs this model inside a precision context; give "
                "each thread a copy of its own (copy.deepcopy), or enter one context after the other"
            )
        self._levels, self._switched_by = number, None if home else thread

    # --- the interface that a paper fills in -------------------------------------------------------------------

    def bounds(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high), fp32, of `self.shape`. `x`: the tensor to quantize, read where the range is not stored."""
        raise TypeError(f"{type(self).__name__} must define bounds(x) -> (low, high)")

    def bounds_at(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """(low, high) that the largest value `clip` would give: [0, clip] unsigned, [-clip, clip] signed."""
        return (-clip if self.signed else torch.zeros_like(clip)), clip

    def set_clip(self, clip: Tensor) -> None:
        """Store the range whose largest value is `clip`, of `self.shape`."""
        raise TypeError(f"{type(self).__name__} stores a range and must define set_clip(clip)")

    def level_count(self, bits: int | None = None) -> int:
        """Levels of the grid at `bits` (home bits by default): 2^b, or 2^b - 1 where signed, so that zero is one."""
        bits = self.bits if bits is None else bits
        assert bits is not None
        if self.signed and bits == 1:
            raise ValueError(
                f"{type(self).__name__} at 1 bit: a signed grid that contains zero needs 2 bits or more; "
                "for one-bit weights use SAWB, DoReFa, LSQ or LeastSquares, for activations 2 bits or signed=False"
            )
        return 2**bits - bool(self.signed)

    def leaves_zero_out(self) -> bool:
        """Whether zero lies half-way between two levels: a grid around zero with an even number of them."""
        return bool(self.signed) and self.level_count() % 2 == 0

    def decayed(self) -> tuple[Tensor, float] | None:
        """(trained range r, factor d) of an L2 penalty on it, d / 2 sum(r^2), that methods add to the loss; or None."""
        return None

    def config(self) -> dict[str, Any]:
        """The arguments that make this quantizer again; a subclass adds its own."""
        signed = None if self.sign_open else self.signed
        return {"bits": self.bits, "signed": signed, "shape": self.shape, "of_weight": self.of_weight}

    def new_range(self, value: float = 1.0) -> nn.Parameter:
        """A range to store and train, of `self.shape`; of one element, (1,), where that is (): 0-dim parameters cannot
        be sharded (torch's fully_shard). `range_of` gives it back in `self.shape`."""
        return nn.Parameter(torch.full(self.shape or (1,), value))

    def range_of(self, stored: Tensor) -> Tensor:
        """What `new_range` made, in `self.shape`."""
        return stored.reshape(self.shape)

    # --- what follows from it ----------------------------------------------------------------------------------

    def span(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """`bounds`, but (0, 0) where a grid that leaves zero out would make something of nothing: of a weight's ranges
        that are zero throughout, and of its row of padding while that is zero; of `self.shape`, or one a row."""
        low, high = self.bounds(x)
        if not self.of_weight or not self.leaves_zero_out() or (self.vanishes and self.padding is None):
            return low, high
        some = self.something(x)
        return torch.where(some, low, 0.0), torch.where(some, high, 0.0)

    def something(self, x: Tensor) -> Tensor:
        """Which ranges of the weight `x` are not zero throughout; with a row of padding, of which rows."""
        some = self.reduce(x.detach().abs(), torch.amax) > 0
        if self.padding is None:
            return some
        rows = torch.arange(len(x), device=x.device).view(-1, *[1] * (x.dim() - 1))
        return some & ((rows != self.padding) | (x.detach()[self.padding] != 0).any())

    def like(self, **changes: Any) -> Self:
        """A new, uncalibrated quantizer of this kind with some arguments changed.

        TypeError: `config` leaves out an argument of the constructor, which the copy would lose.
        """
        config = {**self.config(), **changes}
        kinds = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = inspect.signature(type(self)).parameters.values()
        lost = [p.name for p in parameters if p.kind not in kinds and p.name not in config]
        if lost:
            raise TypeError(
                f"{type(self).__name__}.config() lacks {', '.join(lost)}, which the constructor takes: copies for the "
                "layers of a model would lose it; define config() as {**super().config(), name: value}"
            )
        return type(self)(**config)

    def at(self, bits: int | None) -> "Quantizer":
        """A new, uncalibrated quantizer at `bits`: of this kind, or of another where this kind does not reach them."""
        return self.like(bits=bits)

    def fit(self, values: Tensor, rule: Rule, ends: Tensor | None = None) -> None:
        """Set the range from `values`: a sample (n,) of an activation, or a whole weight where shape is not ().

        ends: least and largest values that a sample may have missed, for rules that have to know of them (`largest`).
        All zero, from where training can move it: clip 1; of a weight 1 / sqrt(inputs of an output), as layers start.
        """
        if self.stored:
            own = inspect.getattr_static(self, "rule", None)  # a plain function in a class is not to be bound
            rule = getattr(own, "__func__", own) or rule
            x = values.detach().float()
            if ends is not None and getattr(rule, "reads_ends", False):
                x = torch.cat([x, ends.float()])
            clip = rule(self, x).to(values.device).reshape(self.shape)
            nothing = self.reduce(x.abs(), torch.amax).reshape(self.shape) == 0
            start = values[0].numel() ** -0.5 if self.of_weight else 1.0
            self.set_clip(torch.where(nothing, start, clip))
        self.calibrated = True

    def set_signed(self, signed: bool) -> None:
        """Decide between the grids over [0, high] and around zero; the number of levels follows."""
        self.signed = signed
        if self.bits is not None:
            self.home_levels = self.levels = level_tensor(self.level_count(), self.home_levels)

    def levels_at(self, bits: int) -> int:
        """Levels when switched to `bits`, bounds held.

        From home bits on k (L - 1) + 1, for the whole k that comes nearest to the grid of that width: every value of
        the home grid is on the finer one. Below home, the grid of that width.
        """
        assert self.bits is not None
        if bits < self.bits:
            return self.level_count(bits)
        steps = self.level_count() - 1
        refine = max(1, round((self.level_count(bits) - 1) / steps))
        return refine * steps + 1

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting():
            self._refuse_switched()
        if isinstance(x, fx.Proxy):
            raise TypeError(
                f"{self.name or type(self).__name__}: torch.fx cannot look into quantizers; give its tracer "
                "spequant.layers.LEAVES as leaf modules (torchvision's create_feature_extractor: "
                'tracer_kwargs={"leaf_modules": [*LEAVES]})'
            )
        if self.watch is not None:
            self.watch(self, x)
            return x
        if self.bits is None:
            return x
        if not self.calibrated or self.signed is None:
            raise RuntimeError(
                f"the {type(self).__name__} of {self.name or 'an unnamed layer'} has no range yet: "
                "call spequant.calibrate(model, batches), or load a calibrated state, before running the model"
            )
        if self.frozen is None or self.frozen_codes is None:
            return self.quantized(x)
        held = self._held(x, self.frozen_codes)
        if self.levels is not self.home_levels:
            return self.quantized(torch.where(self.frozen, held, x))
        return torch.where(self.frozen, held, self.quantized(x))

    def _held(self, x: Tensor, codes: Tensor) -> Tensor:
        """What `codes`, of the home grid, stand for; of the weight `x`, where ranges follow from it."""
        return dequantize(codes.float(), *self.span(x), self.home_levels).to(x.dtype)

    def quantized(self, x: Tensor) -> Tensor:
        """`x` on the grid in use."""
        low, high = self.span(x)
        return fake_quantize(
            x,
            low if self.signed else None,
            high,
            self.levels,
            saturate=self.saturate,
            inner=self.inner,
            ewgs=self.ewgs or 0.0,
        )

    def nearest(self, x: Tensor) -> Tensor:
        """Codes, fp32 whole numbers, of the levels nearest to `x`."""
        return quantize(x, *self.span(x), self.levels)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of `x`, fp32 whole numbers from 0 to levels - 1, on the grid in use; frozen weights keep theirs."""
        if self.frozen is None or self.frozen_codes is None:
            return self.nearest(x)
        if self.levels is not self.home_levels:
            return self.nearest(torch.where(self.frozen, self._held(x, self.frozen_codes), x))
        return torch.where(self.frozen, self.frozen_codes, self.nearest(x))

    def hold_codes(self, codes: Tensor) -> None:
        """Make room for frozen elements of a weight, with `codes` for a start; none is frozen yet."""
        self.frozen_codes = codes.to(torch.uint8)
        self.frozen = torch.zeros_like(self.frozen_codes, dtype=torch.bool)

    def reduce(self, x: Tensor, how: Callable[..., Tensor]) -> Tensor:
        """`how` (torch.mean, torch.amax ...) over everything that shares a range; the result has `self.shape`."""
        if not self.shape:
            return how(x)
        return how(x, dim=[d for d, size in enumerate(self.shape) if size == 1], keepdim=True)

    # --- state: the levels are an attribute outside state_dict, the bits are compared at loading ---------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Device moves reach parameters, buffers and levels; dtype changes leave all of them in fp32."""

        def keep_fp32(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        switched = self._levels is not self.home_levels
        super()._apply(keep_fp32, recurse)
        self.home_levels = keep_fp32(self.home_levels)
        self._levels = keep_fp32(self._levels) if switched else self.home_levels
        return self

    def get_extra_state(self) -> Tensor:
        """int64: (bits or 0, signed: 0 no, 1 yes, 2 undecided, calibrated, sign open, kind, *shape)."""
        signed = 2 if self.signed is None else int(self.signed)
        own = [self.bits or 0, signed, int(self.calibrated), int(self.sign_open), self._kind()]
        return torch.tensor([*own, *self.shape])

    def _kind(self) -> int:
        return zlib.crc32(type(self).__qualname__.encode())

    def set_extra_state(self, state: Tensor) -> None:
        signed, calibrated, sign_open = (int(v) for v in state[1:4])
        self.calibrated, self.sign_open = bool(calibrated), bool(sign_open)
        if signed != 2:
            self.set_signed(bool(signed))

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state = state_dict.get(prefix + "_extra_state")
        if state is not None and int(state[0]) != (self.bits or 0):
            raise ValueError(
                f"{prefix[:-1]}: the state holds a quantizer of {int(state[0]) or 'no'} bits, the model one of "
                f"{self.bits or 'no'}; prepare the model with the bits that the state was trained at"
            )
        if state is not None and int(state[4]) != self._kind():
            raise ValueError(
                f"{prefix[:-1]}: the state holds another kind of quantizer than {type(self).__name__}; "
                "prepare the model with the kind that the state was trained with"
            )
        if state is not None and (shape := tuple(state[5:].tolist())) != self.shape:
            raise ValueError(
                f"{prefix[:-1]}: the state holds ranges of shape {shape}, the model of {self.shape}; "
                "prepare the model with per_channel as the state was trained"
            )
        for name, own in self._parameters.items():  # ranges of a tensor were 0-dim once
            if own is not None and (saved := state_dict.get(prefix + name)) is not None and saved.dim() == 0:
                state_dict[prefix + name] = saved.reshape(own.shape)
        if prefix + "frozen" in state_dict and self.frozen is None:
            self.hold_codes(state_dict[prefix + "frozen_codes"].to(self.home_levels.device))
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _refuse_switched(self) -> None:
        if self._levels is not self.home_levels:
            raise RuntimeError(
                f"{self.name or type(self).__name__}: the model is inside a precision context, whose draw would be "
                "copied as if it were the model's own; leave the `with` block before copying, pickling or exporting"
            )

    def __getstate__(self) -> dict[str, Any]:
        self._refuse_switched()
        return self.__dict__.copy()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._levels = self.home_levels

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in {**self.config(), "signed": self.signed}.items() if v != ())
