"""Batch norm's running statistics: kept out of the teacher's pass, and measured anew for the quantized network."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim.swa_utils import update_bn

Mode = Literal["leave", "update", "eval"]
MODES: tuple[Mode, ...] = ("leave", "update", "eval")


@contextmanager
def batch_norm_mode(model: nn.Module, mode: Mode) -> Iterator[None]:
    """What batch norm does inside: "leave": batch statistics, running ones untouched; "update": as in any training
    forward; "eval": running statistics. A model in eval mode is not touched.

    Switches `track_running_stats`: momentum 0 in its place would still count batches and let one Inf turn the running
    statistics to NaN.
    """
    if mode not in MODES:
        raise ValueError(f"batch_norm is {mode!r}; expected one of {', '.join(map(repr, MODES))}")
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]
    try:
        for m in norms:
            if mode == "leave":
                m.track_running_stats = False
            elif mode == "eval":
                m.training = False
        yield
    finally:
        for m in norms:
            m.track_running_stats, m.training = True, True


class _Run(nn.Module):
    """`run(model, batch)` as a module's forward, for `update_bn`."""

    def __init__(self, model: nn.Module, run: Callable[[nn.Module, Any], Any]):
        super().__init__()
        self.model, self.run = model, run

    def forward(self, holder: dict[str, Any]) -> Any:
        return self.run(self.model, holder["batch"])


@contextmanager
def _without_dropout(model: nn.Module) -> Iterator[None]:
    """Dropout and stochastic depth off, also in train mode."""
    with ExitStack() as undo:
        for m in model.modules():
            attribute = "drop_prob" if hasattr(m, "drop_prob") else "p"
            if isinstance(m, _DropoutNd) or type(m).__name__ in ("StochasticDepth", "DropPath"):
                undo.callback(setattr, m, attribute, getattr(m, attribute))
                setattr(m, attribute, 0.0)
        yield


def reestimate_batch_norm(model: nn.Module, batches: Iterable[Any], run: Callable[[nn.Module, Any], Any]) -> None:
    """Replace running statistics by their mean over `batches`, each forwarded by `run(model, batch)`, dropout off.

    The model runs at the precision in use; its mode (train or eval) is kept. Without batch norm: nothing happens.
    """
    with _without_dropout(model):
        update_bn(({"batch": b} for b in batches), _Run(model, run))
