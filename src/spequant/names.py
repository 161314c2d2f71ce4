"""How messages put things into words. No message itself lives here."""

from collections.abc import Sequence


def some_of(names: Sequence[str], most: int = 3, separator: str = ", ") -> str:
    """The first `most` of `names`, and how many more there are: "a, b, c and 2 more"."""
    more = len(names) - most
    return separator.join(names[:most]) + (f" and {more} more" if more > 0 else "")
