"""What a recipe says of a quantizer beside its bits: each quantizer class has a class `Settings` of its options."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from spequant.quantizers.base import Quantizer


@dataclass(frozen=True, kw_only=True)
class QuantizerSettings:
    """The options of one quantizer: the fields are arguments of its class."""

    kind: ClassVar[Any]
    """the quantizer's class"""

    def __post_init__(self) -> None:
        self.build(None)  # the class checks its arguments

    def build(self, bits: int | None) -> "Quantizer":
        """The quantizer at `bits`, 1 to 8, or None for float."""
        return self.kind(bits, **{field.name: getattr(self, field.name) for field in fields(self)})


def give_settings(kind: type["Quantizer"]) -> None:
    """Let `kind.Settings` make this class of quantizer; one without options, which defines none, gets an empty one."""
    if "Settings" not in vars(kind):
        content = {"__doc__": (kind.__doc__ or "").partition("\n")[0], "__module__": kind.__module__}
        made = type("Settings", (QuantizerSettings,), {**content, "__qualname__": f"{kind.__qualname__}.Settings"})
        kind.Settings = dataclass(frozen=True, kw_only=True)(made)
    kind.Settings.kind = kind
