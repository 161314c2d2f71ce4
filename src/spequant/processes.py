"""What torch.distributed says of this process, and values brought together over all of them.

Alone (no process group): rank 0 of 1, and nothing to bring together. Who starts processes is not decided here.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gathered(value: Any) -> list[Any]:
    """`value` of every process, in order of rank; tensors should be on the CPU."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def sum_over_processes(x: Tensor) -> Tensor:
    """`x` added up over processes, in place, without gradient."""
    if world() > 1:
        dist.all_reduce(x)
    return x


def anyone(asked: bool) -> bool:
    """Whether `asked` is true in any process."""
    return asked if world() == 1 else bool(sum_over_processes(torch.tensor(float(asked), device=_device())) > 0)


def average_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each floating-point tensor by its mean over processes, in place."""
    if world() > 1:
        for x in tensors:
            if x.is_floating_point():
                x.copy_(sum_over_processes(x.clone()) / world())


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel: its forward synchronises nothing. Any other model is itself."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def innermost(model: nn.Module) -> nn.Module:
    """The network inside what torch.compile, DataParallel, DistributedDataParallel and AveragedModel make of it, its
    compiled parts as they were before; parameters and quantizers are the very same ones."""
    while isinstance(model, DistributedDataParallel | nn.DataParallel | AveragedModel):
        model = model.module
    if not any("_orig_mod" in m._modules for m in model.modules()):
        return model
    return innermost(_uncompiled(model, {}))


def _uncompiled(module: nn.Module, made: dict[int, nn.Module]) -> nn.Module:
    """A module that shares everything with `module` but its compiled parts."""
    if (inner := module._modules.get("_orig_mod")) is not None:  # which torch.compile calls it
        return _uncompiled(inner, made)
    if id(module) not in made:
        own = {name: None if child is None else _uncompiled(child, made) for name, child in module._modules.items()}
        if all(own[name] is child for name, child in module._modules.items()):
            made[id(module)] = module
        else:
            twin = object.__new__(type(module))
            vars(twin).update(vars(module), _modules=own)
            made[id(module)] = twin
    return made[id(module)]


def portion(items: int, what: str, parts: int | None = None, part: int | None = None) -> slice:
    """The slice of `items` that this process takes; ValueError where they do not divide evenly."""
    parts, part = world() if parts is None else parts, rank() if part is None else part
    if items % parts:
        raise ValueError(f"{what} is {items}; expected a multiple of {parts}, the number of processes that share it")
    size = items // parts
    return slice(part * size, (part + 1) * size)


def barrier() -> None:
    """Wait until every process is here."""
    sum_over_processes(torch.zeros((), device=_device()))


def _device() -> str:
    return "cuda" if world() > 1 and dist.get_backend() == "nccl" else "cpu"
