"""What a recipe says of a quantizer apart from its bits: each quantizer class has a class `Settings` of its options."""

import inspect
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

    def build(self, bits: int | None, *, power_of_two: bool = False) -> Any:
        """Return the quantizer at `bits`, 1 to 8, or None for float; with `power_of_two`, its steps are powers of two.

        Raises:
            ValueError: `power_of_two` is True, and the quantizer's class does not take it.
        """
        parameters = inspect.signature(self.kind).parameters.values()
        if power_of_two and not any(p.name == "power_of_two" or p.kind is p.VAR_KEYWORD for p in parameters):
            raise ValueError(
                f"power_of_two is True, but {self.kind.__name__} takes no power_of_two; expected a quantizer whose "
                "constructor gives it to Quantizer's, e.g. LSQ"
            )
        options: dict[str, Any] = {"power_of_two": True} if power_of_two else {}
        return self.kind(bits, **{field.name: getattr(self, field.name) for field in fields(self)}, **options)


def give_settings(kind: Any) -> None:
    """Give the quantizer class `kind` its `Settings`; a class that defines none has no options."""
    if "Settings" not in vars(kind):
        content = {"__doc__": (kind.__doc__ or "").partition("\n")[0], "__module__": kind.__module__}
        settings = type("Settings", (QuantizerSettings,), {**content, "__qualname__": f"{kind.__qualname__}.Settings"})
        kind.Settings = dataclass(frozen=True, kw_only=True)(settings)
    kind.Settings.kind = kind
