"""How messages list names; the messages themselves live elsewhere."""

from collections.abc import Sequence


def some_of(names: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """Return the first `most` of `names` and the number of the others, as in "a, b, c and 2 more"."""
    more = len(names) - most
    return separator.join(names[:most]) + (f" and {more} more" if more > 0 else "")
