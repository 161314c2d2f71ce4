"""torch's fully_shard (FSDP2) around a quantized network: several processes train what one trains."""

import socket

import pytest
import torch

from support.forks import Fork
from support.sharding import SHARDED, found, layers_alone, prepared, trained, values


def launch(folder, shape) -> list[dict]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    world = 1
    for size in shape:
        world *= size
    ranks = [{**address, "WORLD_SIZE": str(world), "RANK": str(rank)} for rank in range(world)]
    return [fork.result() for fork in [Fork(found, here, folder, shape) for here in ranks]]


def close(found, expected, **tolerance):
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), **tolerance)


@pytest.mark.parametrize("shape", [(2,), pytest.param((2, 2), marks=pytest.mark.slow)], ids=["sharded", "hybrid"])
def test_a_sharded_network_trains_as_one_process_does(tmp_path, shape):
    """hybrid: copies of a network that is sharded (HSDP), two times two processes."""
    results = launch(tmp_path / "checkpoint", shape)
    for kind, method in SHARDED:
        model = prepared(kind)
        losses, _ = trained(model, method, 3)
        for rank in results:
            for layers in (False, True):
                theirs, parameters = rank[kind, method, layers]
                assert theirs == pytest.approx(losses, rel=1e-5)
                for name, value in values(model).items():
                    close(parameters[name], value, rtol=1e-4, atol=1e-6, msg=f"{kind} {name}")
    for rank in results:
        losses, parameters = rank["resumed"]
        whole = rank["lsq-plus", "retrain", True]
        assert losses == pytest.approx(whole[0][-1:], rel=1e-6)
        for name, value in whole[1].items():
            close(parameters[name], value, rtol=1e-6, atol=1e-7, msg=name)


def test_sharding_the_float_layer_inside_a_quantized_one_is_refused():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "1", "RANK": "0"}
    said = Fork(layers_alone, here).result()
    assert said.startswith("0: fully_shard")
