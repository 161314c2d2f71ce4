"""What a recipe says of a quantizer apart from its bits: each quantizer class has a class `Settings` of its options."""

from dataclasses import dataclass, fields
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class QuantizerSettings:
    """The options of one quantizer. The fields are arguments of its class, which checks them.

    Raises:
        ValueError: an option is out of range.
    """

    kind: ClassVar[Any]
    """the quantizer's class"""

    def __post_init__(self) -> None:
        self.build(None)

    def build(self, bits: int | None) -> Any:
        """Return the quantizer at `bits`, 1 to 8, or None for float."""
        return self.kind(bits, **{field.name: getattr(self, field.name) for field in fields(self)})


def give_settings(kind: Any) -> None:
    """Give the quantizer class `kind` its `Settings`; a class that defines none has no options."""
    if "Settings" not in vars(kind):
        content = {"__doc__": (kind.__doc__ or "").partition("\n")[0], "__module__": kind.__module__}
        made = type("Settings", (QuantizerSettings,), {**content, "__qualname__": f"{kind.__qualname__}.Settings"})
        kind.Settings = dataclass(frozen=True, kw_only=True)(made)
    kind.Settings.kind = kind
