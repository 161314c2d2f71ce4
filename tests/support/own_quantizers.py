"""Quantizers that a user could have written, in a module of their own, by whose name they are found again."""

from spequant.quantizers import LSQ, Quantizer


class Padded(LSQ):
    """LSQ with options: a number, and several."""

    def __init__(self, bits, *, margin=1.0, groups=(1, 2), **given):
        self.margin, self.groups = margin, groups
        super().__init__(bits, **given)

    def config(self):
        return {**super().config(), "margin": self.margin, "groups": self.groups}


class Calling(Padded):
    """Its margin may be a function, which is no JSON."""


class Doubling(LSQ):
    """Its constructor changes what it is given."""

    def __init__(self, bits, *, margin=1.0, **given):
        self.margin = 2 * margin
        super().__init__(bits, **given)

    def config(self):
        return {**super().config(), "margin": self.margin}


def hidden() -> type[Quantizer]:
    """A class that no name leads to."""

    class Hidden(LSQ):
        pass

    return Hidden
