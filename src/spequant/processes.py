"""This process among the processes of torch.distributed, and values combined over all of them.

Without a process group the rank is 0 of 1, and all functions return their own value. Processes are not started here.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel


def rank() -> int:
    """Return the number of this process, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world() -> int:
    """Return the number of processes."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def leave() -> None:
    """Leave the process group, if there is one. A process that ends inside one may abort: its threads still run."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def gathered(value: Any) -> list[Any]:
    """Return the `value` of every process, in the order of ranks; tensors should be on the CPU."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def sum_over_processes(x: Tensor) -> Tensor:
    """Sum `x` over all processes, in place and without gradient, and return it."""
    if world() > 1:
        dist.all_reduce(x)
    return x


def anyone(flag: bool) -> bool:
    """Return whether `flag` is true in any process."""
    return flag if world() == 1 else bool(sum_over_processes(torch.tensor(float(flag), device=_device())) > 0)


def average_over_processes(tensors: Iterable[Tensor]) -> None:
    """Replace each floating-point tensor by its mean over all processes, in place; others are left."""
    if world() > 1:
        for x in tensors:
            if x.is_floating_point():
                x.copy_(sum_over_processes(x.clone()) / world())


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, whose forward does not synchronise; other models unchanged."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def innermost(model: nn.Module) -> nn.Module:
    """Return the network inside torch.compile, `Compiled`, DataParallel, DistributedDataParallel and AveragedModel,
    in any nesting.

    Compiled parts are replaced by the modules that were compiled. Parameters and quantizers are the same objects.
    """
    while (inside := _inside(model)) is not None:
        model = inside
    if not any("_orig_mod" in m._modules for m in model.modules()):
        return model
    return innermost(_uncompiled(model, {}))


def _inside(model: nn.Module) -> nn.Module | None:
    """Return the module that `model` only passes its calls on to, or None if it does more than that."""
    if isinstance(model, DistributedDataParallel | nn.DataParallel | AveragedModel):
        return model.module
    return model.model if getattr(type(model), "passes_on", False) else None  # type: ignore[return-value]


def _uncompiled(module: nn.Module, twins: dict[int, nn.Module]) -> nn.Module:
    """Return `module`, or a module that shares everything with it except its compiled parts; `twins` collects them."""
    if (inner := module._modules.get("_orig_mod")) is not None:  # torch.compile's name for the module inside
        return _uncompiled(inner, twins)
    if id(module) not in twins:
        children = {
            name: None if child is None else _uncompiled(child, twins) for name, child in module._modules.items()
        }
        if all(children[name] is child for name, child in module._modules.items()):
            twins[id(module)] = module
        else:
            twin = object.__new__(type(module))
            vars(twin).update(vars(module), _modules=children)
            twins[id(module)] = twin
    return twins[id(module)]


def portion(items: int, what: str, parts: int | None = None, part: int | None = None) -> slice:
    """Return the slice of range(items) that one process takes.

    Args:
        items: number of items that the processes share.
        what: name of that number, for the message.
        parts: number of processes; default: all.
        part: rank of the process; default: this one's.

    Raises:
        ValueError: the items do not divide evenly.
    """
    parts, part = world() if parts is None else parts, rank() if part is None else part
    if items % parts:
        raise ValueError(f"{what} is {items}; expected a multiple of {parts}, the number of processes that share it")
    size = items // parts
    return slice(part * size, (part + 1) * size)


def barrier() -> None:
    """Wait until every process has called this."""
    sum_over_processes(torch.zeros((), device=_device()))


def _device() -> str:
    return "cuda" if world() > 1 and dist.get_backend() == "nccl" else "cpu"
