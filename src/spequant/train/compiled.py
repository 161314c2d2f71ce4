"""A network through torch.compile, which goes on without it where compiling fails."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Compiled(nn.Module):
    """`model`, compiled at its first call. Where that fails (no C++ compiler, no Triton): a RuntimeWarning with the
    reason, and `model` itself from then on.

    cuda_graphs: on a GPU the kernels are replayed, not launched one by one.
    """

    def __init__(self, model: nn.Module, *, cuda_graphs: bool = False):
        super().__init__()
        self.model = model
        fast = torch.compile(model, mode="reduce-overhead" if cuda_graphs else None)
        self.fast: Callable[..., Any] | None = lambda *args, **kwargs: fast(*args, **kwargs)  # no second child module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.fast is not None:
            try:
                return self.fast(*args, **kwargs)
            except RuntimeError as error:
                from torch._dynamo.exc import BackendCompilerFailed  # lazily: seconds

                if not isinstance(error, BackendCompilerFailed):
                    raise
                reason = str(error).strip().splitlines()[0]
            self.fast = None
            warnings.warn(
                f"torch.compile failed ({reason}): going on without it; low-bit steps take 2 to 3 times as long; "
                "install a C++ compiler (GPU: Triton), or choose this with compile=False (--train.no-compile)",
                RuntimeWarning,
                stacklevel=2,
            )
        return self.model(*args, **kwargs)
