"""Checkpoints: their content, which of them stay, and that damage is noticed and named."""

import json
import random
import resource
import signal

import pytest
import torch

import spequant
from spequant.quantizers import PACT, SAWB
from spequant.train import TrainingState, make_accelerator, make_optimizer, make_schedule, parameter_groups, train_step
from spequant.train.checkpoint import checkpoints, clean, read, write
from support.equations import calibrated, small_batch, small_network

FACTS = {"recipe": {"train": {"seed": 3}}}


@pytest.fixture
def state():
    """A training state after one step."""
    model = calibrated(spequant.prepare(small_network(), weight=SAWB(2), act=PACT(2)), small_batch())
    optimizer = make_optimizer("sgd", parameter_groups(model, lr=0.05, weight_decay=0))
    state = TrainingState(model, spequant.SPEQ(), optimizer, make_schedule("cosine", optimizer, 20))
    train_step(state, small_batch(), make_accelerator())
    return state


@pytest.fixture
def checkpoint(state, tmp_path):
    return write(tmp_path, state.capture(), FACTS)


def test_a_checkpoint_has_the_snapshot_without_a_pickle(state, checkpoint):
    assert sorted(p.name for p in checkpoint.iterdir()) == ["state.json", "tensors.safetensors"]
    snapshot, facts = read(checkpoint)
    expected = state.capture()
    assert snapshot.numbers == json.loads(json.dumps(expected.numbers)) and facts == FACTS
    assert snapshot.numbers["step"] == 1 and snapshot.numbers["method"] == {"step": 1}
    assert snapshot.tensors.keys() == expected.tensors.keys()
    assert all(torch.equal(v, expected.tensors[k]) for k, v in snapshot.tensors.items())


def test_the_last_two_stay(state, tmp_path):
    for state.step in (2, 9, 10):
        write(tmp_path, state.capture(), FACTS)
    assert [p.name for p in checkpoints(tmp_path)] == ["step-00000009", "step-00000010"]
    assert len(list(tmp_path.iterdir())) == 2
    (tmp_path / ".tmp-step-00000011").mkdir()
    clean(tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_every_flipped_bit_and_every_cut_is_noticed(checkpoint):
    draw = random.Random(0)
    for name in ("tensors.safetensors", "state.json"):
        path = checkpoint / name
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little") if name.endswith("safetensors") else len(content)
        places = [draw.randrange(header) for _ in range(40)] + [draw.randrange(len(content)) for _ in range(40)]
        for place in places:
            flipped = bytearray(content)
            flipped[place] ^= 1 << draw.randrange(8)
            path.write_bytes(flipped)
            with pytest.raises(ValueError, match=r"damaged|bytes; expected|lacks|holds the tensor|format is"):
                read(checkpoint)
        for size in (0, 1, len(content) // 2, len(content) - 1):
            path.write_bytes(content[:size])
            with pytest.raises(ValueError, match=r"damaged|bytes; expected"):
                read(checkpoint)
        path.write_bytes(content)
    read(checkpoint)


def test_a_damaged_tensor_is_named_with_what_to_do(checkpoint):
    path = checkpoint / "tensors.safetensors"
    content = bytearray(path.read_bytes())
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    at = 8 + int.from_bytes(content[:8], "little") + header["model.linear.layer.bias"]["data_offsets"][0]
    content[at] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"tensor model\.linear\.layer\.bias is damaged.*remove this folder"):
        read(checkpoint)


def test_another_format_is_refused(checkpoint):
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({**state, "format": 2}))
    with pytest.raises(ValueError, match="format is 2; this version reads 1"):
        read(checkpoint)


def test_a_full_disk_leaves_the_last_good_checkpoint(state, checkpoint, tmp_path):
    state.step = 2
    snapshot = state.capture()
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**12, before[1]))
        with pytest.raises(OSError, match=r"step-00000002 could not be written .*last good one is .*-00000001"):
            write(tmp_path, snapshot, FACTS)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert list(tmp_path.iterdir()) == [checkpoint] and read(checkpoint)


def test_a_checkpoint_stays_where_later_ones_lie(state, tmp_path):
    for state.step in (300, 400, 100):
        path = write(tmp_path, state.capture(), FACTS)
        assert path.is_dir()
