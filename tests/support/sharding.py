"""What one of several processes finds when torch's fully_shard has spread a quantized network over them."""

import os
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

import spequant
from spequant.layers import QuantizedLayer
from spequant.methods import JointBits, Retrain
from spequant.quantizers import CSQ, LSQ, PACT, SAWB, APoT, LSQPlus, MinMax

KINDS = {
    "pact": (SAWB(2), PACT(2)),
    "lsq": (LSQ(2), LSQ(2)),
    "lsq-plus": (CSQ(2), LSQPlus(2)),
    "apot": (APoT(3), PACT(2)),
    "minmax": (MinMax(4), MinMax(4)),
}
METHODS = {"retrain": Retrain, "joint": lambda: JointBits((4, 8)), "speq": lambda: spequant.SPEQ()}
SHARDED = (*((kind, "retrain") for kind in KINDS), ("pact", "joint"), ("lsq-plus", "joint"))


def prepared(kind: str) -> nn.Module:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model = spequant.prepare(network, weight=KINDS[kind][0], act=KINDS[kind][1])
    spequant.calibrate(model, [torch.randn(32, 6)], samples=32)
    return model


def trained(model: nn.Module, method: str, steps: int, optimizer: torch.optim.Optimizer | None = None):
    """(losses of some steps, the optimizer) on one batch, the same in every process."""
    generator = torch.Generator().manual_seed(5)
    batch = torch.randn(8, 6, generator=generator), torch.arange(8) % 3
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    made, losses = METHODS[method](), []
    for _ in range(steps):
        optimizer.zero_grad()
        total = made(model, batch).total
        total.backward()
        optimizer.step()
        losses.append(float(whole(total)))
    return losses, optimizer


def whole(x: Tensor) -> Tensor:
    return (x.full_tensor() if hasattr(x, "full_tensor") else x).detach()  # type: ignore[operator]


def values(model: nn.Module) -> dict[str, list]:
    return {name: whole(p).tolist() for name, p in model.named_parameters()}


def sharded(model: nn.Module, mesh, layers: bool) -> nn.Module:
    from torch.distributed.fsdp import fully_shard

    for layer in [m for m in model if isinstance(m, QuantizedLayer)] if layers else []:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def found(here: dict[str, str], folder: Path, shape: tuple[int, ...]) -> dict:
    """Losses and parameters by (kind, method, layers apart), and those of a run that goes on from a checkpoint.

    here: a launcher's variables."""
    from torch.distributed import checkpoint
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
    from torch.distributed.device_mesh import init_device_mesh

    os.environ |= here
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=("replicate", "shard")[-len(shape) :])
    results = {}
    for kind, method in SHARDED:
        for layers in (False, True):
            model = sharded(prepared(kind), mesh, layers)
            losses, _ = trained(model, method, 3)
            results[kind, method, layers] = losses, values(model)
    trained(sharded(prepared("pact"), mesh, True), "speq", 2)
    first = sharded(prepared("lsq-plus"), mesh, True)
    _, optimizer = trained(first, "retrain", 2)
    network, of_optimizer = get_state_dict(first, optimizer)
    checkpoint.save({"model": network, "optimizer": of_optimizer}, checkpoint_id=folder)
    resumed = sharded(prepared("lsq-plus"), mesh, True)
    optimizer = torch.optim.SGD(resumed.parameters(), lr=0.1, momentum=0.9)
    network, of_optimizer = get_state_dict(resumed, optimizer)
    state = {"model": network, "optimizer": of_optimizer}
    checkpoint.load(state, checkpoint_id=folder)
    set_state_dict(resumed, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])
    losses, _ = trained(resumed, "retrain", 1, optimizer)
    results["resumed"] = losses, values(resumed)
    dist.destroy_process_group()
    return results


def layers_alone(here: dict[str, str]) -> str:
    """What a forward says where the float layers inside the quantized ones were sharded."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    os.environ |= here
    dist.init_process_group("gloo")
    model = prepared("pact")
    for layer in [m for m in model.modules() if isinstance(m, nn.Linear)]:
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    try:
        model(torch.randn(2, 6))
    except RuntimeError as error:
        return str(error)
    finally:
        dist.destroy_process_group()
    return "ran"
