"""--to c: the compiled program's codes and scores next to the twin's, its files, and what is refused."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn

import spequant
from spequant.deploy import Twin, lower
from spequant.deploy.c.engine import cc, compiled
from spequant.deploy.c.manifest import identifier
from spequant.deploy.code_graphs import CodeGraphs
from spequant.deploy.compare import forced
from spequant.deploy.formats.c import c_graph
from spequant.quantizers import LSQ, PACT, SAWB
from support.edge_networks import EDGES
from support.integer_networks import QUANTIZED, Joined, Mixed, Shared, lowered, prepared

STRICT = ("-Wall", "-Wextra", "-Wpedantic", "-Wconversion", "-Werror")
NEEDS_COMPILER = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is installed"
)
pytestmark = NEEDS_COMPILER
INTEGER = [name for name in QUANTIZED if name != "float ends"]
GRAPHS = CodeGraphs(c_graph, None)
QUICK = ("two bits",)
LARGE = ("vgg11_bn", "alexnet", "reparametrised", "googlenet")  # millions of weights, which compilers read for minutes


def compared(program, x, pixels=None, preprocessing=None):
    """x: the network's input; pixels, preprocessing: that it is made of, where the program takes these.

    (codes of at most 16 that differ end to end, forced codes that differ and are no ties, largest difference of
    answers in deviations)"""
    twin, graph = Twin(program), c_graph(program, taps=program.integer_ops, preprocessing=preprocessing)
    values, outputs = twin.everything(x), list(twin.outputs(x).values())
    images = (x if pixels is None else pixels).numpy()
    got = cc(graph.data)({"input": images})
    assert graph.taps is not None
    few = [
        (op, codes) for op, codes in zip(graph.taps, got[len(outputs) :], strict=True) if op.grid and op.grid.bits <= 4
    ]
    wrong = sum(int((codes != graph.stored(values[op], op)).sum()) for op, codes in few)
    entry = None if preprocessing is None else (images, preprocessing)
    found = forced(program, x, cc, GRAPHS, entry).values()
    apart = max(float(np.abs(a - b.numpy()).max() / b.std()) for a, b in zip(got[: len(outputs)], outputs, strict=True))
    return wrong, sum(f.unequal - f.ties for f in found), apart


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in INTEGER])
def test_the_program_computes_the_twins_codes(name):
    case = lowered(name)
    wrong, other, apart = compared(case.program, case.x[:8])
    assert other == 0 and (name == "eight bits" or wrong == 0)
    assert apart < (0.05 if name in ("eight bits", "dorefa") else 1e-5)  # whose ends of 8 and 7 bits have ties


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in EDGES if not name.endswith(LARGE)])
@pytest.mark.parametrize("bits", [2, 4])
def test_everyday_networks(name, bits):
    edge = EDGES[name]
    x = torch.randn(2, *edge.shape)
    program = lower(prepared(edge.make(), x, SAWB(bits), PACT(bits), between=8), x[:1])
    _, other, apart = compared(program, x)
    assert other == 0 and apart < 0.1


@pytest.mark.slow
@pytest.mark.parametrize(("network", "shape"), [(Mixed, (4, 1, 8, 8)), (Joined, (4, 3, 8, 8)), (Shared, (4, 1, 8, 8))])
@pytest.mark.parametrize("weight_bits", range(1, 9))
def test_weights_of_every_width(network, shape, weight_bits):
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8)
    x = (pixels.float() / 255 - 0.5) / 0.25
    weight = SAWB(1) if weight_bits == 1 else LSQ(weight_bits)
    program = lower(prepared(network(), x, weight, LSQ(3), ends=max(2, weight_bits)), x[:1])
    wrong, other, apart = compared(program, x, pixels, ([0.5] * shape[1], [0.25] * shape[1]))
    assert wrong == 0 and other == 0 and apart < 1e-4


@st.composite
def _networks(draw):
    """(network, shape of a sample, bits of weights, bits of activations): small ones with odd shapes."""
    channels, size = draw(st.integers(1, 5)), draw(st.tuples(st.integers(3, 9), st.integers(3, 9)))
    layers, inputs = [], channels
    for _ in range(draw(st.integers(1, 3))):
        depthwise = draw(st.booleans())
        outputs = inputs if depthwise else draw(st.integers(1, 9))
        kernel = draw(st.sampled_from([1, 3]))
        stride, dilation = draw(st.integers(1, 2)), draw(st.integers(1, 2))
        padding = dilation * (kernel // 2)
        layers.append(
            nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, inputs if depthwise else 1, bias=False)
        )
        layers += [nn.BatchNorm2d(outputs), nn.ReLU()] if draw(st.booleans()) else []
        inputs = outputs
    layers += [nn.Flatten() if draw(st.booleans()) else nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    border = [nn.ZeroPad2d(draw(st.tuples(*[st.integers(1, 2)] * 4)))] if draw(st.booleans()) else []
    network = nn.Sequential(*border, *layers, nn.LazyLinear(draw(st.integers(2, 7))))
    network.eval()(torch.zeros(1, channels, *size))
    return network, (channels, *size), draw(st.integers(1, 8)), draw(st.integers(2, 8))


@pytest.mark.slow
@settings(deadline=None, max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(_networks(), st.integers(0, 2**31))
def test_random_networks(made, seed):
    network, shape, weight_bits, act_bits = made
    torch.manual_seed(seed)
    x = torch.randn(6, *shape)
    weight = SAWB(1) if weight_bits == 1 else LSQ(weight_bits)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.data.uniform_(-1, 1)
    program = lower(prepared(network, x, weight, LSQ(act_bits), ends=act_bits, between=8), x[:1])
    wrong, other, _ = compared(program, x)
    assert other == 0 and (wrong == 0 or max(weight_bits, act_bits) > 4)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(network, report): in W2A2, with names of classes."""
    case, folder = lowered("two bits"), tmp_path_factory.mktemp("c") / "net"
    return case, spequant.export(case.model, folder, [case.x], "c", classes=[f"class {i}" for i in range(10)])


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of its files."""
    return Path(shutil.copytree(exported[1].path, tmp_path / "net"))


def test_a_folder_of_files_is_written_and_opened_again(exported, folder):
    case, report = exported
    files = ["CMakeLists.txt", "manifest.json", "net.c", "net.h", "net_test.c"]
    assert sorted(p.name for p in folder.iterdir()) == files
    assert report.parity.agreement == 1 and all(c.twin == c.forced == 0 for c in report.parity.codes)
    opened = spequant.load(folder)
    assert opened.classes is not None and opened.classes[3] == "class 3"
    assert torch.equal(opened(case.x).argmax(1), case.twin(case.x).argmax(1))
    head = json.loads((folder / "manifest.json").read_text())
    assert report.size == head["constants"] and 0 < head["stack"] < 4000
    source = (folder / "net.c").read_text()
    included = {line.split()[1] for line in source.splitlines() if line.startswith("#include")}
    assert included == {'"net.h"', "<string.h>", "<arm_acle.h>"} and "float" not in source and "double" not in source
    subprocess.run([compiled(folder, "net_test.c", *STRICT, name="test")], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", ["address", "undefined"])
def test_sanitizers_are_silent(folder, sanitizer):
    flags = f"-fsanitize={sanitizer}", "-fno-sanitize-recover=all"
    subprocess.run([compiled(folder, "net_test.c", *STRICT, *flags, name="test")], check=True)


@pytest.mark.slow
def test_clang_has_nothing_to_say(folder, monkeypatch):
    if shutil.which("clang") is None:
        pytest.skip("clang is not installed")
    monkeypatch.setenv("CC", "clang")
    subprocess.run([compiled(folder, "net_test.c", *STRICT, name="test")], check=True)


CALLER = """
#include "net.h"
#include <string.h>
int main(void)
{
    static signed char input[NET_INPUT_SIZE];
    static int32_t scores[NET_SCORES + 1], other[NET_SCORES];
    static uint32_t arena[NET_ARENA_SIZE / 4 + 1];
    int wrong = 0;
    scores[NET_SCORES] = 77;
    wrong |= net_run(NULL, scores, arena, sizeof arena) != NET_ERROR_NULL;
    wrong |= net_run(input, NULL, arena, sizeof arena) != NET_ERROR_NULL;
    wrong |= net_run(input, scores, NULL, sizeof arena) != NET_ERROR_NULL;
    wrong |= net_run(input, scores, arena, NET_ARENA_SIZE - 1) != NET_ERROR_ARENA;
    wrong |= scores[0] != 0 || arena[0] != 0;
    memset(input, 127, sizeof input); /* none of the codes that the input has */
    wrong |= net_run(input, scores, arena, NET_ARENA_SIZE) != NET_OK || scores[NET_SCORES] != 77;
    memset(arena, 255, sizeof arena); /* what is left from before does not count */
    wrong |= net_run(input, other, arena, NET_ARENA_SIZE) != NET_OK || memcmp(scores, other, sizeof other) != 0;
    wrong |= arena[NET_ARENA_SIZE / 4] != 0xFFFFFFFFu || scores[net_best(scores, NET_SCORES)] < scores[1];
    return wrong;
}
"""


def test_a_caller_gets_a_status(folder):
    (folder / "caller.c").write_text(CALLER)
    program = compiled(folder, "caller.c", *STRICT, str(folder / "net.c"), name="caller")
    subprocess.run([program], check=True)


@pytest.mark.slow
def test_pixels_are_the_input_where_preprocessing_is_given(tmp_path):
    pixels = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8)
    preprocessing = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in preprocessing)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))
    model = prepared(network, (pixels.float() / 255 - mean) / std, SAWB(2), PACT(2))
    report = spequant.export(model, tmp_path / "net", [pixels], "c", preprocessing=preprocessing)
    assert report.parity.agreement == 1 and not any(c.twin for c in report.parity.codes)
    assert spequant.load(tmp_path / "net")(pixels).shape == (16, 3)


def test_what_is_float_is_refused_by_name_before_anything_is_written(tmp_path):
    case = lowered("float ends")
    with pytest.raises(ValueError, match=r"conv1: .*c has no layer"):
        spequant.export(case.model, tmp_path / "net", [case.x], "c")
    assert not list(tmp_path.iterdir())


def test_a_machine_without_a_compiler_is_told_so(tmp_path, monkeypatch):
    case = lowered("two bits")
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(FileNotFoundError, match="CC is 'no-such-compiler'"):
        spequant.export(case.model, tmp_path / "net", [case.x], "c")
    assert not list(tmp_path.iterdir())


def test_a_folder_of_other_files_stays(tmp_path):
    case = lowered("two bits")
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "thesis.tex").write_text("x")
    with pytest.raises(FileExistsError, match=r"net is a folder"):
        spequant.export(case.model, tmp_path / "net", [case.x], "c")
    assert (tmp_path / "net" / "thesis.tex").read_text() == "x"


def test_a_changed_file_is_not_opened(folder):
    source = folder / "net.c"
    source.write_text(source.read_text().replace("127", "126"))
    with pytest.raises(ValueError, match="was changed since"):
        spequant.load(folder)


@pytest.mark.parametrize(("name", "expected"), [("Net-8.c", "net_8"), ("8bit", "n8bit"), ("_x", "n_x"), ("é", "n_")])
def test_names_are_identifiers_of_c(tmp_path, name, expected):
    assert identifier(tmp_path / name) == expected
