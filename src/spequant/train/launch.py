"""Processes, devices and wrappers: accelerate's object, and the network as a step calls it."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from spequant.extras import needs
from spequant.processes import world
from spequant.train.compiled import Compiled

if TYPE_CHECKING:
    from accelerate import Accelerator


def make_accelerator(
    precision: Literal["fp32", "bf16"] = "fp32",
    *,
    device: str = "auto",
    accumulate: int = 1,
    tracker: str | None = None,
    folder: Path | None = None,
) -> "Accelerator":
    """accelerate's `Accelerator`; under `accelerate launch` or `torchrun` it joins the other processes.

    precision: "bf16": autocast of training steps; quantization itself stays in fp32 inside.
    accumulate: parts of a batch whose gradients are added up to one step.
    tracker: "tensorboard", "wandb" ...: any that accelerate knows by name; it writes below `folder`.
    """
    accelerate, state = needs("accelerate", "train"), needs("accelerate.state", "train")  # which take seconds to import
    if accumulate < 1:
        raise ValueError(f"accumulate is {accumulate!r}; expected 1 or more parts of a batch")
    if state.is_initialized():  # accelerate keeps one a process, which refuses another precision or device
        state.AcceleratorState._reset_state(reset_partial_state=world() == 1)
    made = accelerate.Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=accumulate,
        cpu=device.startswith("cpu"),
        log_with=tracker,
        project_dir=folder,
    )
    if tracker is not None and not made.log_with:
        raise ValueError(f"tracker is {tracker!r}; accelerate does not find its package: install it")
    return made


def wrap(model: nn.Module, *, compile: bool = False, cuda_graphs: bool = False) -> nn.Module:
    """`model` as a training step calls it: compiled, and with several processes in DistributedDataParallel.

    compile, cuda_graphs: see `Compiled`, which falls back to the plain network.
    Not accelerate's `prepare`: that puts autocast into the model's forward, and evaluation is to stay in fp32.
    """
    wrapped = Compiled(model, cuda_graphs=cuda_graphs) if compile else model
    return wrapped if world() == 1 else DistributedDataParallel(wrapped)


def make_deterministic() -> None:
    """Let torch choose deterministic kernels alone, on a GPU too; RuntimeError later where an operation has none.

    On the CPU, with a fixed number of threads, training is deterministic as it is. On a GPU sums of gradients in
    convolutions, in indexing and in pooling are not, without this.
    """
    import os

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True)


def keep_freed_memory() -> None:
    """On Linux: let the C library keep what a step frees for the next one, rather than give it back to the kernel,
    which clears every page anew. A float ResNet-20 step takes a fifth less. Elsewhere: nothing.

    Memory then stays at its peak until the process ends.
    """
    import ctypes

    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return
    mallopt(-4, 0)  # M_MMAP_MAX: no block of its own for a large tensor
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much free memory may lie at the heap's end
