"""A network that runs compiled, or uncompiled where compiling fails."""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class Compiled(nn.Module):
    """A network that is compiled by torch.compile at its first call.

    Where compiling fails (no C++ compiler, no Triton), a RuntimeWarning gives the reason, and the network runs
    uncompiled from then on. On a CPU dropout draws the numbers that it draws uncompiled, and at their speed:
    torch.compile's own are drawn one by one, so that a step of a BERT takes longer than uncompiled.

    Args:
        model: The network; its parameters are those of this module.
        cuda_graphs: Whether a GPU replays recorded kernels instead of launching them one by one.
    """

    passes_on = True
    """For `spequant.processes.innermost`, which finds the network inside."""
    paused = False
    """True: the network runs uncompiled for the time being."""

    def __init__(self, model: nn.Module, *, cuda_graphs: bool = False):
        super().__init__()
        self.model, self.cuda_graphs = model, cuda_graphs
        self.fast: Callable[..., Any] | None = self._compiled()

    def _compiled(self) -> Callable[..., Any]:
        if self.cuda_graphs:
            fast = torch.compile(self.model, mode="reduce-overhead")
        else:
            on_cpu = all(tensor.device.type == "cpu" for tensor in self.model.parameters())
            fast = torch.compile(self.model, options={"fallback_random": on_cpu})
        return lambda *args, **kwargs: fast(*args, **kwargs)  # `fast` is no child module

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "fast": self.fast is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Compile a copy anew, since the function that was compiled computes with the parameters of the original."""
        super().__setstate__(state)
        self.fast = self._compiled() if state["fast"] else None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if self.fast is not None and not self.paused:
            try:
                return self.fast(*args, **kwargs)
            except RuntimeError as error:
                from torch._dynamo.exc import BackendCompilerFailed  # takes seconds to import

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
