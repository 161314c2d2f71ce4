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
    accelerator = accelerate.Accelerator(
        mixed_precision="no" if precision == "fp32" else precision,
        gradient_accumulation_steps=accumulate,
        cpu=device.startswith("cpu"),
        log_with=tracker,
        project_dir=folder,
    )
    if tracker is not None and not accelerator.log_with:
        raise ValueError(f"tracker is {tracker!r}; accelerate does not find its package: install it")
    return accelerator


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


KEEP = "SPEQUANT_KEEP_FREED_MEMORY"
"""the environment variable that switches `keep_freed_memory` off"""


def keep_freed_memory() -> bool:
    """Let glibc's allocator keep the memory that a training step frees, for the next step, in the whole process.

    Otherwise the allocator gives large blocks back to the kernel, which fills every page with zeros when the next step
    asks for it. A step of ResNet-20 on a CPU takes 0.66 to 0.98 of the time without (docs/runs.md). The memory of the
    process stays at its peak until it ends.

    The commands of `spequant` call this; the library never does. The environment variable SPEQUANT_KEEP_FREED_MEMORY=0
    switches it off.

    Returns:
        Whether memory is kept; False where it is switched off, and where the C library is not glibc.

    Raises:
        ValueError: the environment variable is neither 0 nor 1.
    """
    import ctypes
    import os

    value = os.environ.get(KEEP, "1")
    if value not in ("0", "1"):
        raise ValueError(f"the environment variable {KEEP} is {value!r}; expected 0 or 1")
    if value == "0":
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    mmap_max = mallopt(-4, 0)  # M_MMAP_MAX: a large tensor gets no mapping of its own
    trim_threshold = mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD: how much free memory may lie at the end of the heap
    return bool(mmap_max and trim_threshold)
