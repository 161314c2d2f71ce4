"""The versions that files declare: the lowest at which every operator means the same, and those of each format."""

import pytest
import torch
from torch import nn

from spequant.deploy import export_mixed, integer_graph, lower, mixed_graph, quant_graph, read_onnx
from spequant.deploy.onnx_versions import TRACED, declare_lowest
from support.integer_networks import NEEDS_ONNXRUNTIME, QUANTIZED, Joined, lowered, prepared
from support.mixed_networks import NEEDS_ONNXSCRIPT
from support.mixed_networks import prepared as any_prepared

pytestmark = NEEDS_ONNXRUNTIME


def versions(graph) -> tuple[int, int]:
    (own,) = (o.version for o in graph.opset_import if not o.domain)
    return own, graph.ir_version


@pytest.mark.parametrize("name", QUANTIZED)
def test_integer_and_qonnx_files_are_for_engines_of_2021(name):
    program = lowered(name).program
    taps = [op for op in program.ops if op.grid is not None]
    assert versions(integer_graph(program)) == (13, 7)
    assert versions(integer_graph(program, preprocessing=((0.5,), (0.5,)), taps=taps)) == (13, 7)
    assert versions(quant_graph(program)) == (13, 7)


@NEEDS_ONNXSCRIPT
@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ([nn.Linear(4, 4), nn.Linear(4, 3)], (14, 7)),
        ([nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 3)], (17, 8)),
        ([nn.Linear(4, 4), nn.GELU(), nn.Linear(4, 3)], (14, 7)),
    ],
)
def test_mixed_files_declare_what_they_need(layers, expected):
    x = torch.randn(8, 4)
    assert versions(mixed_graph(any_prepared(nn.Sequential(*layers), x), x[:1]).graph) == expected


@NEEDS_ONNXSCRIPT
def test_the_file_declares_what_the_graph_does(tmp_path):
    x = torch.randn(8, 4)
    model = prepared(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3)), x)
    _, mixed = export_mixed(model, tmp_path / "net.onnx", [x])
    assert versions(read_onnx(tmp_path / "net.onnx")[0]) == versions(mixed.graph) == (14, 7)


@NEEDS_ONNXSCRIPT
@pytest.mark.parametrize("name", ["integer", "mixed", "qonnx"])
def test_no_operator_means_something_else_there_and_none_lower_would_do(name):
    from onnx import checker, defs

    x = torch.randn(4, 3, 8, 8)
    model = prepared(Joined(), x)
    program = lower(model, x[:1])
    makers = {
        "integer": lambda: integer_graph(program),
        "qonnx": lambda: quant_graph(program),
        "mixed": lambda: mixed_graph(model, x[:1]).graph,
    }
    graph = makers[name]()
    own, _ = versions(graph)
    kinds = {node.op_type for node in graph.graph.node if not node.domain}
    since = {kind: defs.get_schema(kind, own, "").since_version for kind in kinds}
    assert max(since.values()) == own <= TRACED
    if name != "qonnx":
        checker.check_model(graph, full_check=True)


def test_graphs_inside_graphs_and_functions_count():
    from onnx import TensorProto, helper

    info, node = helper.make_tensor_value_info, helper.make_node
    inner = helper.make_graph([node("Gelu", ["x"], ["y"])], "inner", [], [info("y", TensorProto.FLOAT, [1])])
    branch = node("If", ["c"], ["z"], then_branch=inner, else_branch=inner)
    ends = [info("x", TensorProto.FLOAT, [1]), info("c", TensorProto.BOOL, [])], [info("z", TensorProto.FLOAT, [1])]
    model = helper.make_model(helper.make_graph([branch], "g", *ends), opset_imports=[helper.make_opsetid("", 20)])
    assert versions(declare_lowest(model)) == (20, 9)  # since which there is Gelu
    plain = [node("Add", ["x", "x"], ["z"])]
    model = helper.make_model(helper.make_graph(plain, "g", *ends), opset_imports=[helper.make_opsetid("", 20)])
    assert versions(declare_lowest(model)) == (14, 7)
    function = helper.make_function("own", "f", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], model.opset_import)
    model.functions.append(function)
    assert versions(declare_lowest(model)) == (14, 8)  # since which models may hold functions
