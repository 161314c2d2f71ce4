"""Activation checkpointing: the second forward, in the backward pass, runs in the same contexts as the first.

torch.utils.checkpoint stores a part of the forward as a function, and calls it again when the backward pass needs its
activations. By then a `with` block around the first forward has ended, so its context has to be entered again. torch
leaves that to the caller of `checkpoint` (`context_fn`), but the caller is the network or the library that it is from.
This module therefore replaces the two classes in which torch stores the function, with and without reentrant autograd,
by classes that enter the contexts that were open. They act as torch's own when no context is open.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

from torch.utils import checkpoint

Enter = Callable[[], AbstractContextManager[Any]]

_open: ContextVar[tuple[Enter, ...]] = ContextVar("open", default=())


@contextmanager
def entered_again(enter: Enter) -> Iterator[None]:
    """Inside this context, checkpointed functions will be computed again inside `enter()`.

    It holds for checkpoints that this thread makes; the second computation may run in another thread.

    Args:
        enter: makes the context to enter again.
    """
    _wrap_checkpoint()
    token = _open.set((*_open.get(), enter))
    try:
        yield
    finally:
        _open.reset(token)


def _inside(contexts: tuple[Enter, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` run inside all `contexts`."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for enter in contexts:
                stack.enter_context(enter())
            return function(*args, **kwargs)

    return run


class _Frame(checkpoint._CheckpointFrame):
    """torch's record of a checkpointed function without reentrant autograd."""

    def __init__(self, recompute_fn: Callable[..., Any], *args: Any, **kwargs: Any):
        contexts = _open.get()
        super().__init__(_inside(contexts, recompute_fn) if contexts else recompute_fn, *args, **kwargs)


class _Reentrant:
    """Replacement of torch's autograd function of checkpoints with reentrant autograd, which calls `function` in both
    passes."""

    original = checkpoint.CheckpointFunction

    @classmethod
    def apply(cls, function: Callable[..., Any], *args: Any) -> Any:
        contexts = _open.get()
        return cls.original.apply(_Twice(contexts, function) if contexts else function, *args)


class _Twice:
    """`function` with its first call as it is, and all later calls inside `contexts`."""

    def __init__(self, contexts: tuple[Enter, ...], function: Callable[..., Any]):
        self.first, self.later, self.called = function, _inside(contexts, function), False

    def __call__(self, *args: Any) -> Any:
        if self.called:
            return self.later(*args)
        self.called = True
        return self.first(*args)


def _wrap_checkpoint() -> None:
    checkpoint._CheckpointFrame = _Frame  # type: ignore[misc]
    checkpoint.CheckpointFunction = _Reentrant  # type: ignore[misc, assignment]
