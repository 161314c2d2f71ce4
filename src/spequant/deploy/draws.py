"""Networks that answer at random in eval mode, dropout that stays active above all: no file can answer as they do."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spequant.calibration.batches import cloned, modes_kept, run_model
from spequant.deploy.checks import Refused
from spequant.names import some_of


@torch.no_grad()
def run_without_draws(model: nn.Module, example: Tensor | Mapping[str, Tensor]) -> Any:
    """What `model` gives in eval mode for `example`, a tensor or inputs by name.

    ValueError: random numbers are drawn, and it depends on them: where any are, the network runs once more, with every
    draw turned around.
    """
    with modes_kept(model):
        model.eval()
        with _names(model) as running, _Draws(running) as draws:
            out = run_model(model, cloned(example))
        if draws.places and not _same(out, _turned(model, example, draws)):
            where = some_of(list(dict.fromkeys(draws.places)))
            raise Refused(
                f"{where}: random numbers in eval mode, on which the answer depends; no file can give it. Dropout by "
                "F.dropout(x, p) is always active: write F.dropout(x, p, training=self.training), or use nn.Dropout"
            )
    return out


def _turned(model: nn.Module, example: Any, draws: "_Draws") -> Any:
    """What `model` gives where it draws 1 less what it drew before, or that in another order."""
    with _names(model) as running, _Draws(running, draws.drawn):
        return run_model(model, cloned(example))


class _Draws(TorchDispatchMode):
    """places: "module (operation)" of each that draws random numbers; drawn: these numbers. earlier: those of a run
    before, which take their place, turned."""

    def __init__(self, running: list[str], earlier: Sequence[Tensor] = ()):
        super().__init__()
        self.running, self.earlier = running, iter(earlier)
        self.places, self.drawn = list[str](), list[Tensor]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags and _draws(func, args, kwargs or {}):
            self.places.append(f"{self.running[-1]} ({func.overloadpacket.__name__.strip('_')})")
            for x in (x for x in tree_leaves(out) if isinstance(x, Tensor)):
                self.drawn.append(x.clone())
                before = next(self.earlier, x)
                if before.shape == x.shape and before is not x:
                    x.copy_(1 - before if x.is_floating_point() else before.flip(tuple(range(x.dim()))))
        return out


def _draws(func: Any, args: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether `func` draws when called so: fused attention, for one, may have no dropout."""
    arguments = {a.name: a.default_value for a in func._schema.arguments}
    arguments |= dict(zip(arguments, args, strict=False)) | dict(kwargs)
    return bool(arguments.get("dropout_p", arguments.get("training", arguments.get("train", True))))


def _same(a: Any, b: Any) -> bool:
    pairs = zip(tree_leaves(a), tree_leaves(b), strict=True)
    return all(bool(((x == y) | (x != x)).all()) for x, y in pairs if isinstance(x, Tensor))


@contextmanager
def _names(model: nn.Module) -> Iterator[list[str]]:
    """Inside, the names of the modules of `model` that run, the innermost last."""
    running, handles = [type(model).__name__], []

    def leave(*_: Any) -> None:
        running.pop()

    for name, module in model.named_modules():
        if name:
            handles.append(module.register_forward_pre_hook(lambda m, args, name=name: running.append(name)))
            handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield running
    finally:
        for handle in handles:
            handle.remove()
