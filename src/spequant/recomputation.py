"""Activation checkpointing: what runs a second time, in the backward pass, runs in the contexts of the first time.

torch.utils.checkpoint keeps a part of a forward as a function and calls it again when gradients need its activations,
which is after a `with` block around the forward has ended. What is said here is which contexts that call has to enter
again. torch lets the caller of `checkpoint` say so (`context_fn`), but that is the network, or the library it is from;
so its two ways to keep a function, with and without reentrant autograd, are wrapped while a context is open.
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
    """Inside, in this thread, what is checkpointed will be computed again inside `enter()`, also in other threads."""
    _wrap_checkpoint()
    token = _open.set((*_open.get(), enter))
    try:
        yield
    finally:
        _open.reset(token)


def _inside(contexts: tuple[Enter, ...], function: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        with ExitStack() as stack:
            for enter in contexts:
                stack.enter_context(enter())
            return function(*args, **kwargs)

    return run


class _Frame(checkpoint._CheckpointFrame):
    """What torch keeps of a checkpointed function without reentrant autograd."""

    def __init__(self, recompute_fn: Callable[..., Any], *args: Any, **kwargs: Any):
        contexts = _open.get()
        super().__init__(_inside(contexts, recompute_fn) if contexts else recompute_fn, *args, **kwargs)


class _Reentrant:
    """In the place of torch's autograd function of checkpoints with reentrant autograd, which runs `function` in both
    passes."""

    own = checkpoint.CheckpointFunction

    @classmethod
    def apply(cls, function: Callable[..., Any], *args: Any) -> Any:
        contexts = _open.get()
        return cls.own.apply(_Twice(contexts, function) if contexts else function, *args)


class _Twice:
    """`function`, whose first call is as it is and whose later ones are inside `contexts`."""

    def __init__(self, contexts: tuple[Enter, ...], function: Callable[..., Any]):
        self.function, self.again, self.ran = function, _inside(contexts, function), False

    def __call__(self, *args: Any) -> Any:
        if self.ran:
            return self.again(*args)
        self.ran = True
        return self.function(*args)


def _wrap_checkpoint() -> None:
    checkpoint._CheckpointFrame = _Frame  # type: ignore[misc]
    checkpoint.CheckpointFunction = _Reentrant  # type: ignore[misc, assignment]
