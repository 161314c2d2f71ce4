"""Packed files: sizes, equal logits, and that nothing damaged, hostile or foreign is loaded."""

import random
from itertools import pairwise

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import spequant
from spequant.deploy import load_packed, pack, packed_about
from spequant.models import resnet18, resnet20
from spequant.quantizers import LSQ, PACT, SAWB, DoReFa, LeastSquares, MinMax, percentile
from spequant.quantizers.held import Held
from spequant.train.freezing import OscillationFreezer
from support.integer_networks import small
from support.packed_files import put, rewritten


def calibrated(network, weight, act, x, **options):
    model = spequant.prepare(network, weight=weight, act=act, **options)
    spequant.calibrate(model, [x], samples=len(x), rule=percentile(98.0))
    return model.eval()


@pytest.mark.parametrize(
    ("weight", "act", "options"),
    [
        (SAWB(2), PACT(2), {}),
        (LSQ(3), LSQ(4), {"per_channel": True}),
        (LSQ(3, power_of_two=True), LSQ(4, power_of_two=True), {"per_channel": True}),
        (DoReFa(2), DoReFa(3), {"residual": MinMax(8)}),
        (LeastSquares(1), MinMax(8), {"ends": 6}),
        (SAWB(5), PACT(2, signed=True), {"ends": None, "residual": None}),
        (None, PACT(3), {}),
        (SAWB(6), None, {}),
    ],
)
def test_a_packed_network_gives_equal_logits_at_every_precision(weight, act, options, tmp_path):
    x = torch.randn(16, 1, 8, 8)
    model = calibrated(small(), weight, act, x, **options)
    pack(model, tmp_path / "a", {"network": "small"})
    loaded = load_packed(tmp_path / "a", small())
    assert torch.equal(loaded(x), model(x)) and packed_about(tmp_path / "a") == {"network": "small"}
    if act is not None:
        outputs = []
        for bits in (2, 3, 5, 8):
            for network in (model, loaded):
                with spequant.precision(network, spequant.Fixed(bits)):
                    outputs.append(network(x))
        assert all(torch.equal(a, b) for a, b in zip(outputs[::2], outputs[1::2], strict=True))
    pack(loaded, tmp_path / "b", {"network": "small"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def depthwise():
    layers = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.ReLU6(), nn.Conv2d(6, 6, 3, 2, 1, groups=6), nn.BatchNorm2d(6)
    return nn.Sequential(*layers, nn.ReLU6(), nn.Flatten(), nn.Linear(96, 3))


@pytest.mark.parametrize("options", [{}, {"per_channel": True}])
def test_depthwise_and_other_tensors(options, tmp_path):
    x = torch.randn(4, 3, 8, 8)
    model = calibrated(depthwise(), LSQ(2), PACT(2), x, **options)
    model.register_buffer("table", torch.arange(5))
    pack(model, tmp_path / "m")
    network = depthwise()
    network.register_buffer("table", torch.zeros(5, dtype=torch.int64))
    loaded = load_packed(tmp_path / "m", network)
    assert torch.equal(loaded(x), model(x)) and loaded.table.tolist() == [0, 1, 2, 3, 4]


def test_frozen_weights(tmp_path):
    kept = calibrated(
        nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), LSQ(2), PACT(2), torch.rand(64, 4), ends=2
    )
    OscillationFreezer(kept, threshold=0.1)
    q = kept[0].weight_quantizer
    q.frozen[:4], q.frozen_codes[:4] = True, 3
    pack(kept, tmp_path / "f")
    y = torch.rand(8, 4)
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    assert torch.equal(load_packed(tmp_path / "f", network)(y), kept(y))


def times_smaller(network, folder):
    save_file(network.state_dict(), folder / "float")
    pack(calibrated(network, SAWB(2), PACT(2), torch.randn(2, 3, 16, 16)), folder / "packed")
    return (folder / "float").stat().st_size / (folder / "packed").stat().st_size


def test_resnet20_at_two_bits_is_a_twelfth_of_its_float_file(tmp_path):
    assert times_smaller(resnet20(), tmp_path) >= 12


@pytest.mark.slow
def test_resnet18_at_two_bits_is_less_than_a_thirteenth(tmp_path):
    """`bench infer`'s network."""
    pytest.importorskip("torchvision")
    assert times_smaller(resnet18(), tmp_path) >= 13.5


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """(a float network of two layers, its packed file)"""
    network = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    path = tmp_path_factory.mktemp("packed") / "linear"
    pack(calibrated(network, SAWB(2), PACT(2), torch.rand(64, 6), ends=2), path, {"a": 1})
    return network, path


def test_two_thousand_mutated_files_are_all_refused(linear, tmp_path):
    network, path = linear
    whole, draw = path.read_bytes(), random.Random(0)
    header = 8 + int.from_bytes(whole[:8], "little")
    target = tmp_path / "mutated"
    for trial in range(2000):
        data = bytearray(whole)
        kind = trial % 5
        if kind == 0:
            data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        elif kind == 1:
            data[draw.randrange(header)] = draw.randrange(32, 127)
        elif kind == 2:
            del data[draw.randrange(len(data)) :]
        elif kind == 3:
            at = draw.randrange(len(data))
            data[at:at] = bytes(draw.randrange(256) for _ in range(draw.randrange(1, 9)))
        else:
            at = draw.randrange(header)
            data[at : at + 8] = draw.randrange(2**63).to_bytes(8, "little")
        if data == whole:
            continue
        target.write_bytes(data)
        with pytest.raises(ValueError, match=r"packed file|damaged|format is|contradicts"):
            load_packed(target, network)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("layers", "0", 0, [2**30, 2**30]), "0: its codes"),
        (put("layers", "0", 0, [5, -6]), r"\[5, -6\]"),
        (put("layers", "0", 1, 9), "0 has 9 bits"),
        (put("layers", "0", 2, 300), "0 .* 300 levels"),
        (put("layers", "0", 3, [7, 1]), r"0: .* \[7, 1\]"),
        (put("layers", "9", ["x"]), "contradicts itself"),
        (put("acts", 0, 1, "two"), "contradicts itself"),
        (put("acts", 0, 3, 1), "1 no sign"),
        (put("slots", "0", [7]), "has the quantizers"),
        (put("slots", "0", [-1]), "has the quantizers"),
        (put("floats", 0, 1, [2**39]), "floats are"),
        (put("floats", 0, 0, "weight:1"), "ranges are"),
        (put("floats", []), "floats are"),
        (lambda c, t: t.pop("0.codes"), "contradicts itself"),
        (lambda c, t: t.update({"0.codes": t["0.codes"].float()}), "0: its codes"),
        (lambda c, t: t.update(more=torch.zeros(2)), "holds more,"),
        (put("slots", "nobody", [0, 0]), "nobody"),
    ],
)
def test_a_hostile_file_is_refused_before_anything_large(linear, tmp_path, change, message):
    network, path = linear
    rewritten(path, tmp_path / "hostile", change)
    with pytest.raises(ValueError, match=message):
        load_packed(tmp_path / "hostile", network)


def test_foreign_files_networks_and_models_are_refused(linear, tmp_path):
    network, path = linear
    with pytest.raises(FileNotFoundError, match="none"):
        load_packed(tmp_path / "none", network)
    save_file({"a": torch.zeros(1)}, tmp_path / "plain")
    with pytest.raises(ValueError, match="plain is no packed"):
        load_packed(tmp_path / "plain", network)
    with pytest.raises(ValueError, match=r"holds 0\.bias"):
        load_packed(path, nn.Sequential(nn.Linear(6, 5, bias=False), nn.ReLU(), nn.Linear(5, 3)))
    with pytest.raises(ValueError, match=r"0\.weight has shape \(5, 6\); expected \(5, 7\)"):
        load_packed(path, nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 3)))
    rewritten(path, tmp_path / "newer", lambda c, t: None)
    newer = (tmp_path / "newer").read_bytes().replace(b'\\"format\\": 1', b'\\"format\\": 2')
    (tmp_path / "newer").write_bytes(newer)
    with pytest.raises(ValueError, match="format is 2; this version reads 1"):
        load_packed(tmp_path / "newer", network)
    with pytest.raises(ValueError, match=r"call spequant\.prepare first"):
        pack(network, tmp_path / "float")
    model = spequant.prepare(network, weight=SAWB(2), act=PACT(2))
    with pytest.raises(RuntimeError, match="no range yet"):
        pack(model, tmp_path / "uncalibrated")
    assert not (tmp_path / "uncalibrated").exists() and not (tmp_path / "float").exists()


def test_a_header_that_is_nested_too_deeply_is_a_damaged_file(tmp_path):
    save_file({"a": torch.zeros(1)}, tmp_path / "net.packed", {"spequant": "[" * 200_000})
    with pytest.raises(ValueError, match=r"net\.packed is no packed"):
        load_packed(tmp_path / "net.packed", nn.Linear(2, 2))


def test_what_torch_wraps_is_packed_as_the_network_inside(linear, tmp_path):
    network, path = linear
    model = load_packed(path, network)
    pack(model, tmp_path / "plain")
    for wrapped in (torch.compile(model), nn.DataParallel(model), torch.compile(nn.DataParallel(model))):
        pack(wrapped, tmp_path / "wrapped")
        assert (tmp_path / "wrapped").read_bytes() == (tmp_path / "plain").read_bytes()


class Powers(PACT):
    """Not equally spaced."""

    def quantized(self, x):
        return super().quantized(x).square()


def test_values_that_are_no_codes_are_refused(tmp_path):
    x = torch.rand(64, 6)
    for options in ({"weight": SAWB(2), "act": Powers(2)}, {"weight": Powers(2), "act": PACT(2)}):
        model = calibrated(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), x=x, ends=2, **options)
        with pytest.raises(ValueError, match=r"Powers.*equally spaced"):
            pack(model, tmp_path / "powers")
    with pytest.raises(ValueError, match="levels is 5; expected 2 to 4"):
        Held(2, levels=5)


def test_held_levels_refine_as_those_they_came_from():
    for q in (PACT(2), PACT(3, signed=True), LSQ(2, signed=True), LSQ(4)):
        q.signed = bool(q.signed)
        held = Held(q.bits, levels=q.level_count(), signed=q.signed)
        counts = [held.levels_at(bits) for bits in range(2, 9)]
        assert counts == [q.levels_at(bits) for bits in range(2, 9)] and all(a <= b for a, b in pairwise(counts))


WRAPPED = {
    "averaged": lambda net: torch.optim.swa_utils.AveragedModel(net),
    "data parallel": lambda net: nn.DataParallel(net),
    "compiled": lambda net: torch.compile(net),
    "a part compiled": lambda net: nn.Sequential(torch.compile(net[0]), *net[1:]),
}


@pytest.mark.parametrize("how", WRAPPED)
def test_what_wraps_a_network_is_not_packed_with_it(how, tmp_path):
    net = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 3))
    x = torch.randn(16, 4)
    model = spequant.prepare(net, weight=SAWB(2), act=PACT(2))
    spequant.calibrate(model, [x], samples=16)
    expected = model.eval()(x)
    spequant.pack(WRAPPED[how](model), tmp_path / "model.packed")
    for network in (net, WRAPPED[how](net)):
        assert torch.equal(spequant.load_packed(tmp_path / "model.packed", network)(x), expected)
