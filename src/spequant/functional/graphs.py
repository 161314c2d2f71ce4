"""Functions that are one node each in a graph of torch.compile."""

import hashlib
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch

Given = ParamSpec("Given")
Returned = TypeVar("Returned")


def _namespace() -> str:
    """Return the namespace of the operators, which changes with the arithmetic of the library.

    torch keeps compiled graphs on disk and knows an operator by its name alone: with a name that stayed, a changed
    function would go on with the kernels of the old one.
    """
    package = Path(__file__).parent.parent
    rooms = ("functional", "quantizers")
    texts = [path.read_bytes() for room in rooms for path in sorted((package / room).glob("*.py"))]
    return f"spequant_{hashlib.blake2b(b''.join(texts), digest_size=6).hexdigest()}"


OPERATORS = torch.library.Library(_namespace(), "FRAGMENT")


def one_node(
    schema: str, *, like: Callable[..., Any] | None = None, called_up_to: int | float = 0
) -> Callable[[Callable[Given, Returned]], Callable[Given, Returned]]:
    """Return a decorator: while torch.compile traces, a call of the function is one node of the graph.

    torch.compile then neither traces into the function nor guards what it reads, and keeps the whole graph on disk,
    which it does not with custom autograd functions. The function is looked into only when kernels are made, and is
    compiled as if it had been traced. Everywhere else a call is a plain call.

    Args:
        schema: arguments and result, as in `torch.library.define`, e.g. "(Tensor x, float factor) -> Tensor"; the
            function must follow from its arguments alone.
        like: called with the same arguments, it returns in an operation or two a tensor like the result: of its shape,
            layout and type, with gradient where the result has it. Tracing, which asks for no more, is then faster.
        called_up_to: of a function without gradient, with `like`: where its first argument has at most so many values
            and is on a CPU, it is not compiled but called at each step, since compiling its kernels would take longer
            than they could save.
    """

    def decorate(function: Callable[Given, Returned]) -> Callable[Given, Returned]:
        traced = function if like is None else _outlined(function, like)
        compiled = _operator(function.__name__, schema, traced, "CompositeImplicitAutograd")
        called = compiled
        if called_up_to:
            called = _operator(f"{function.__name__}_on_cpu", schema, function, "CompositeExplicitAutograd", like)

        @wraps(function)
        def call(*args: Given.args, **kwargs: Given.kwargs) -> Returned:
            if torch.compiler.is_compiling() and not torch.compiler.is_exporting():
                x: Any = args[0]
                small = called_up_to > 0 and x.device.type == "cpu" and x.numel() <= called_up_to
                return (called if small else compiled)(*args, **kwargs)
            return function(*args, **kwargs)

        return call

    return decorate


def _outlined(function: Callable[..., Any], like: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function that computes `function`, and `like` where torch.compile follows shapes: its tensors are fake
    then, and no graph is made of what is done with them."""

    def run(*args: Any) -> Any:
        from torch._subclasses.fake_tensor import FakeTensor  # torch.compile has imported these
        from torch.fx.experimental.proxy_tensor import get_proxy_mode

        only_shapes = type(args[0]) is FakeTensor and get_proxy_mode() is None
        return like(*args) if only_shapes else function(*args)

    return run


def _operator(name: str, schema: str, function: Any, key: str, shape: Any = None) -> Any:
    """Return the operator that computes `function`; shape: makes an empty result, where it is not compiled."""
    OPERATORS.define(name + schema)
    OPERATORS.impl(name, function, key)
    if shape is not None:
        OPERATORS.impl(name, shape, "Meta")
    return getattr(getattr(torch.ops, OPERATORS.ns), name).default
