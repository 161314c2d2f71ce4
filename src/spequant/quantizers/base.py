"""What every quantizer shares: bits, levels, sign, calibration, and the checks on its state.

The formula of a paper does not belong here: each has its own file in this folder.
"""

import inspect
import threading
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, fx, nn

from spequant.functional import dequantize, fake_quantize, on_power_of_two, quantize, reduced
from spequant.quantizers.settings import QuantizerSettings, give_settings
from spequant.quantizers.state import check_settings, decode_flags, encode_settings, reshape_older
from spequant.quantizers.widths import check_bits, level_tensor

Rule = Callable[["Quantizer", Tensor], Tensor]
"""A calibration rule, (quantizer, values) -> clip: it chooses the end of a stored range. See `ranges.py`."""


class Quantizer(nn.Module):
    """Round a tensor to a few equally spaced values between two bounds.

    A subclass defines the bounds (`bounds`). If it stores a range (`new_range`), it also defines how a clip, the
    largest value of the range, sets the range (`set_clip`, `bounds_at`). `bits` fixes the home grid, at which the
    quantizer trains. `levels` is the grid in use: `spequant.precision` replaces it for a while, in one thread, without
    moving the bounds.

    Args:
        bits: 1 to 8; None lets the tensor pass unchanged.
        signed: False for a grid over [0, high], True for a grid around zero, None to let calibration decide.
        shape: shape of the range: () for one range per tensor, or for example (channels, 1, 1, 1) for one range per
            channel of a convolution's weight.
        of_weight: True for a weight, which is signed and present as a whole; False for an activation, whose first axis
            counts samples.
        power_of_two: whether the step is the power of two nearest to that of `bounds`, at every precision (see
            `on_power_of_two`); the gradient passes straight through the rounding of its exponent.

    Raises:
        ValueError: bits out of range, or too few for the grid.
    """

    stored = True  # False: no range is kept between forwards; the bounds follow from the tensor
    fits_few = True  # False: the bounds are only right for many values, so depthwise weights get another quantizer
    vanishes = False  # True: the bounds of an all-zero weight are zero
    rule: Rule | None = None  # the quantizer's own calibration rule; None: the rule that `calibrate` was called with
    weights_only = False  # True: only for weights, since the grid has no zero or the range follows from each tensor
    saturate = True  # see `fake_quantize`
    inner = False  # see `fake_quantize`
    ewgs: float | None = 0.0  # d of EWGS, see ewgs.py; None: this quantizer cannot use EWGS
    padding: int | None = None  # the padding row of an embedding's table; set by prepare
    Settings: ClassVar[type[QuantizerSettings]]  # how recipes choose it; each subclass has one, see settings.py

    def __init_subclass__(cls, **options: Any):
        super().__init_subclass__(**options)
        give_settings(cls)

    def __init__(
        self,
        bits: int | None,
        *,
        signed: bool | None = None,
        shape: tuple[int, ...] = (),
        of_weight: bool = False,
        power_of_two: bool = False,
    ):
        super().__init__()
        check_bits(bits, "bits", or_float=True)
        self.power_of_two = bool(power_of_two)
        self.bits, self.shape, self.of_weight = bits, tuple(shape), of_weight
        self.signed = True if of_weight else signed
        self.sign_open = self.signed is None  # every calibration decides the sign anew
        self.name = ""  # name of its layer in the model; set by prepare
        self.calibrated = not self.stored
        self.watch: Callable[[Quantizer, Tensor], Tensor] | None = None  # stands in: what it returns passes
        self._switched_by: int | None = None  # the thread whose precision context is open
        self.home_levels = self._levels = level_tensor(2 if bits is None else self.level_count())
        self.frozen: Tensor | None
        self.frozen_codes: Tensor | None
        self.register_buffer("frozen", None)  # bool: the elements of a weight that train/freezing.py keeps at a code
        self.register_buffer("frozen_codes", None)  # uint8: their codes; without meaning for the other elements

    @property
    def levels(self) -> Tensor:
        """Number of levels of the grid in use, 0-dim fp32.

        This is the home grid's number unless the running thread has set another one. In a compiled model the number
        holds for all threads; a replica of DataParallel has the number that its model had.
        """
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
        """Return (low, high), fp32, of `self.shape`; `x` is the tensor to quantize, read if no range is stored."""
        raise TypeError(f"{type(self).__name__} must define bounds(x) -> (low, high)")

    def bounds_at(self, clip: Tensor) -> tuple[Tensor, Tensor]:
        """Return the (low, high) that `clip` as the largest value would give: [0, clip], or [-clip, clip] if signed."""
        return (-clip if self.signed else torch.zeros_like(clip)), clip

    def set_clip(self, clip: Tensor) -> None:
        """Store the range whose largest value is `clip`, a tensor of `self.shape`."""
        raise TypeError(f"{type(self).__name__} stores a range and must define set_clip(clip)")

    def level_count(self, bits: int | None = None) -> int:
        """Return the number of levels at `bits` (default: home bits): 2^b, or 2^b - 1 if signed, to include zero.

        Raises:
            ValueError: one bit, signed, where the grid has to contain zero.
        """
        bits = self.bits if bits is None else bits
        assert bits is not None
        if self.signed and bits == 1:
            layer = f"{self.name}: " if self.name else ""
            raise ValueError(
                f"{layer}{type(self).__name__} at 1 bit: a signed grid that contains zero needs 2 bits or more; "
                "for one-bit weights use SAWB, DoReFa, LSQ or LeastSquares, for activations 2 bits or signed=False"
            )
        return 2**bits - bool(self.signed)

    def leaves_zero_out(self) -> bool:
        """Return whether zero lies half-way between two levels: the grid is symmetric, their number even."""
        return bool(self.signed) and self.level_count() % 2 == 0

    def decayed(self) -> tuple[Tensor, float] | None:
        """Return (trained range r, factor d) of the L2 penalty d / 2 sum(r^2) that methods add to the loss, or None."""
        return None

    def grid_options(self) -> str:
        """Return the options, apart from bits and shape, that change the values; they are compared with a state's."""
        return ""

    def config(self) -> dict[str, Any]:
        """Return the constructor's arguments that make this quantizer again; a subclass adds its own."""
        signed = None if self.sign_open else self.signed
        powers = {"power_of_two": True} if self.power_of_two else {}
        return {"bits": self.bits, "signed": signed, "shape": self.shape, "of_weight": self.of_weight, **powers}

    def new_range(self, value: float = 1.0) -> nn.Parameter:
        """Return a new parameter for a range of `self.shape`; read it through `range_of`.

        A range of shape () is stored as (1,), because torch's fully_shard cannot shard 0-dim parameters.
        """
        return nn.Parameter(torch.full(self.shape or (1,), value))

    def range_of(self, stored: Tensor) -> Tensor:
        """Return a parameter of `new_range` in `self.shape`."""
        return stored.reshape(self.shape)

    # --- what follows from the interface -----------------------------------------------------------------------

    def grid_bounds(self, x: Tensor, levels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the (low, high) between which a grid of `levels` (default: those in use) lies, fp32, of `self.shape`.

        They are `bounds(x)`; with `power_of_two`, the nearest ones at which the step is a power of two.
        """
        low, high = self.bounds(x)
        if not self.power_of_two:
            return low, high
        return on_power_of_two(low, high, self.home_levels, self.levels if levels is None else levels)

    def span(self, x: Tensor, levels: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `grid_bounds(x, levels)`, but (0, 0) wherever zeros of a weight would come back as other values.

        A grid without zero would do that to ranges that are all zero, and to an all-zero padding row. The result has
        `self.shape`, or one pair per row if there is a padding row.
        """
        low, high = self.grid_bounds(x, levels)
        if not self.of_weight or not self.leaves_zero_out() or (self.vanishes and self.padding is None):
            return low, high
        nonzero = self.nonzero(x)
        return torch.where(nonzero, low, 0.0), torch.where(nonzero, high, 0.0)

    def nonzero(self, x: Tensor) -> Tensor:
        """Return which ranges of the weight `x` are not all zero, bool; one value per row if there is a padding row."""
        nonzero = self.reduce(x.detach().abs(), torch.amax) > 0
        if self.padding is None:
            return nonzero
        rows = torch.arange(len(x), device=x.device).view(-1, *[1] * (x.dim() - 1))
        return nonzero & ((rows != self.padding) | (x.detach()[self.padding] != 0).any())

    def like(self, **changes: Any) -> Self:
        """Return a new, uncalibrated quantizer of this kind with some of the constructor's arguments changed.

        Raises:
            TypeError: `config` lacks an argument of the constructor, so that the copy would lose it.
        """
        config = {**self.config(), **changes}
        variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        parameters = inspect.signature(type(self)).parameters.values()
        optional = (*config, "power_of_two")  # which `config` leaves out where it is False
        missing = [p.name for p in parameters if p.kind not in variadic and p.name not in optional]
        if missing:
            raise TypeError(
                f"{type(self).__name__}.config() lacks {', '.join(missing)}, which the constructor takes: copies for "
                "the layers of a model would lose it; define config() as {**super().config(), name: value}"
            )
        return type(self)(**config)

    def at(self, bits: int | None) -> "Quantizer":
        """Return a new, uncalibrated quantizer at `bits`; of another kind if this one is not defined at `bits`."""
        return self.like(bits=bits)

    def fit(self, values: Tensor, rule: Rule, ends: Tensor | None = None) -> None:
        """Set the range from `values`; called by calibration.

        All-zero values give a range from which training can move: clip 1 for an activation, 1 / sqrt(inputs per output)
        for a weight, the size that layers are initialized at.

        Args:
            values: a sample (n,) of an activation, or a whole weight.
            rule: chooses the clip, unless the quantizer has its own `rule`.
            ends: least and largest value of the activation, which the sample may lack; for rules that need the ends
                (`largest`).
        """
        if self.stored:
            attribute = inspect.getattr_static(self, "rule", None)  # a plain function must not be bound to self
            rule = getattr(attribute, "__func__", attribute) or rule
            x = values.detach().float()
            if ends is not None and getattr(rule, "reads_ends", False):
                x = torch.cat([x, ends.float()])
            clip = rule(self, x).to(values.device).reshape(self.shape)
            all_zero = self.reduce(x.abs(), torch.amax).reshape(self.shape) == 0
            start = values[0].numel() ** -0.5 if self.of_weight else 1.0
            self.set_clip(torch.where(all_zero, start, clip))
        self.calibrated = True

    def set_signed(self, signed: bool) -> None:
        """Choose the grid around zero (True) or over [0, high] (False); the levels follow. ValueError: too few bits."""
        before, self.signed = self.signed, signed
        try:
            count = 2 if self.bits is None else self.level_count()
        except ValueError:
            self.signed = before
            raise
        self.home_levels = self.levels = level_tensor(count, self.home_levels)

    def levels_at(self, bits: int) -> int:
        """Return the number of levels when the precision is switched to `bits` over the same bounds.

        Below home bits this is `level_count(bits)`. Otherwise it is k (L - 1) + 1, where L is the number of levels of
        the home grid and the whole number k brings the result nearest to `level_count(bits)`, or with `power_of_two` is
        2^(bits - home bits); every value of the home grid is then on the finer grid.
        """
        assert self.bits is not None
        if bits < self.bits:
            return self.level_count(bits)
        steps = self.level_count() - 1
        refine = 2 ** (bits - self.bits) if self.power_of_two else round((self.level_count(bits) - 1) / steps)
        return max(1, refine) * steps + 1

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded to the grid in use, of the same shape and dtype; frozen elements at their codes.

        Raises:
            RuntimeError: there is no range yet; or the model is exported inside a precision context.
            TypeError: torch.fx traces into the quantizer.
        """
        if torch.compiler.is_exporting():
            self._refuse_switched()
        if isinstance(x, fx.Proxy):
            raise TypeError(
                f"{self.name or type(self).__name__}: torch.fx cannot look into quantizers; give its tracer "
                "spequant.layers.LEAVES as leaf modules (torchvision's create_feature_extractor: "
                'tracer_kwargs={"leaf_modules": [*LEAVES]})'
            )
        return self.rounded(x) if self.watch is None else self.watch(self, x)

    def rounded(self, x: Tensor) -> Tensor:
        """Return what `forward` does where nothing stands in for it."""
        if self.bits is None:
            return x
        if not self.calibrated or self.signed is None:
            raise RuntimeError(
                f"the {type(self).__name__} of {self.name or 'an unnamed layer'} has no range yet: "
                "call spequant.calibrate(model, batches), or load a calibrated state, before running the model"
            )
        if self.frozen is None or self.frozen_codes is None:
            return self.quantized(x)
        frozen_values = self._values_of(self.frozen_codes, x)
        if self.levels is not self.home_levels:
            return self.quantized(torch.where(self.frozen, frozen_values, x))
        return torch.where(self.frozen, frozen_values, self.quantized(x))

    def _values_of(self, codes: Tensor, x: Tensor) -> Tensor:
        """Return the values of `codes` of the home grid, whose bounds may follow from the weight `x`."""
        return dequantize(codes.float(), *self.span(x, self.home_levels), self.home_levels).to(x.dtype)

    def quantized(self, x: Tensor) -> Tensor:
        """Return `x` rounded to the grid in use; frozen elements count like all others."""
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
        """Return the codes of the levels nearest to `x`, whole numbers as fp32; frozen elements count like others."""
        return quantize(x, *self.span(x), self.levels)

    def encode(self, x: Tensor) -> Tensor:
        """Return the codes of `x` on the grid in use, whole numbers from 0 to levels - 1 as fp32.

        Frozen elements keep their codes.
        """
        if self.frozen is None or self.frozen_codes is None:
            return self.nearest(x)
        if self.levels is not self.home_levels:
            return self.nearest(torch.where(self.frozen, self._values_of(self.frozen_codes, x), x))
        return torch.where(self.frozen, self.frozen_codes, self.nearest(x))

    def hold_codes(self, codes: Tensor) -> None:
        """Add the buffers `frozen` and `frozen_codes`, which starts as `codes`; no element is frozen yet."""
        self.frozen_codes = codes.to(torch.uint8)
        self.frozen = torch.zeros_like(self.frozen_codes, dtype=torch.bool)

    def reduce(self, x: Tensor, how: Callable[..., Tensor]) -> Tensor:
        """Apply `how` (torch.mean, torch.amax ...) to the values that share a range; the result has `self.shape`."""
        return reduced(x, self.shape, how)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move parameters, buffers and levels between devices; a change of dtype leaves all of them in fp32."""

        def keep_fp32(t: Tensor) -> Tensor:
            moved = fn(t)
            return moved if moved.dtype == t.dtype else t.to(moved.device)

        switched = self._levels is not self.home_levels
        super()._apply(keep_fp32, recurse)
        count = 2 if self.bits is None else self.level_count()  # `to_empty` moves tensors without their values
        self.home_levels = level_tensor(count, fn(self.home_levels))
        self._levels = keep_fp32(self._levels) if switched else self.home_levels
        return self

    def get_extra_state(self) -> Tensor:
        kind = self._kind(), self.shape, self.grid_options()
        return encode_settings(self.bits, self.signed, self.calibrated, self.sign_open, *kind)

    def _kind(self) -> str:
        """Return the name of the class, and whether it rounds to powers of two, as states hold them."""
        return type(self).__qualname__ + ("(power_of_two=True)" if self.power_of_two else "")

    def set_extra_state(self, state: Tensor) -> None:
        signed, self.calibrated, self.sign_open = decode_flags(state)
        if signed is not None:
            self.set_signed(signed)

    def check_state(self, state_dict: Mapping[str, Any], prefix: str) -> None:
        """Raise a ValueError if the state below `prefix` is that of a quantizer with other settings than this one's."""
        kind = self._kind(), self.shape, self.grid_options()
        check_settings(state_dict.get(prefix + "_extra_state"), prefix[:-1], self.bits, *kind)

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.check_state(state_dict, prefix)
        reshape_older(state_dict, prefix, self._parameters)
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
        return {**self.__dict__, "watch": None}  # what stands in here does not in copies

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._levels = self.home_levels

    def extra_repr(self) -> str:
        return ", ".join(f"{k}={v}" for k, v in {**self.config(), "signed": self.signed}.items() if v != ())
