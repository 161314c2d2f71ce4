"""QONNX graphs: their own package answers as the twin, before and after its transformations, and reads their widths."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from spequant.deploy import Twin, lower, model_costs, quant_graph, read_onnx, write_onnx
from spequant.deploy.engines import ENGINES
from spequant.deploy.formats.qonnx import bits_of_range
from spequant.quantizers import LSQ, PACT, SAWB
from support.integer_networks import QUANTIZED, lowered, prepared

WIDTHS = {
    "two bits": ("UINT2", "INT3"),  # the odd codes of four levels need three bits
    "one bit": ("BINARY", "BIPOLAR"),
    "four bits": ("UINT4", "INT5"),
    "lsq": ("UINT3", "INT2"),
}


@pytest.mark.parametrize("name", QUANTIZED)
def test_qonnx_answers_alike_and_its_cost_tool_reads_it(name, tmp_path):
    pytest.importorskip("qonnx")
    from qonnx.util.inference_cost import inference_cost

    case, path = lowered(name), tmp_path / "net.onnx"
    write_onnx(quant_graph(case.program, about={"of": "a test"}), path)
    graph, head = read_onnx(path)
    assert head["about"] == {"of": "a test"} and "Quant" in {node.op_type for node in graph.graph.node}
    (got,) = ENGINES["qonnx"](path)({"input": case.x.numpy()})
    np.testing.assert_allclose(got, case.twin(case.x), rtol=1e-4, atol=1e-4)
    assert (got.argmax(1) == case.model(case.x).argmax(1).numpy()).all()
    if name in WIDTHS:
        cost = inference_cost(str(path), discount_sparsity=False)["total_cost"]
        acts, weights = WIDTHS[name]
        assert cost[f"op_mac_{acts}_{weights}"] == sum(c.macs for c in model_costs(case.model, case.x)[1:-1])


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 3, (2, 0, 0)),
        (0, 1, (1, 0, 0)),
        (0, 5, (3, 0, 0)),
        (-3, 3, (3, 1, 1)),
        (-4, 3, (3, 1, 0)),
        (-2, 1, (2, 1, 0)),
    ],
)
def test_the_smallest_integer_type(low, high, expected):
    assert bits_of_range(low, high) == expected


def transformed(path, *names):
    """The file after qonnx's cleanup, and after the transformations `names`, module.Class."""
    from importlib import import_module

    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.util.cleanup import cleanup_model

    model = cleanup_model(ModelWrapper(str(path)))
    for name in names:
        module, _, kind = name.rpartition(".")
        made = getattr(import_module(f"qonnx.transformation.{module}"), kind)()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # that it was written for another opset
            model = model.transform(made)
    return model


def answers(model, x):
    from qonnx.core.onnx_exec import execute_onnx

    first, last = model.graph.input[0].name, model.graph.output[0].name
    return np.concatenate([execute_onnx(model, {first: one[None].numpy()})[last] for one in x])


USUAL = {
    "none": (),
    "shapes and types": ("infer_shapes.InferShapes", "infer_datatypes.InferDataTypes"),
    "linear layers": ("gemm_to_matmul.GemmToMatMul", "infer_shapes.InferShapes", "fold_constants.FoldConstants"),
    "batch norm": ("batchnorm_to_affine.BatchNormToAffine", "infer_datatypes.InferDataTypes"),
    "bits": ("infer_datatypes.InferDataTypes", "bipolar_to_xnor.ConvertBipolarMatMulToXnorPopcount"),
    "scales": ("extract_quant_scale_zeropt.ExtractQuantScaleZeroPt", "remove.RemoveIdentityOps"),
}
"""what FINN's and hls4ml's own scripts begin with"""


QUICK = ((SAWB, 1), (LSQ, 2), (SAWB, 8))
WIDTHS_OF = [(quantizer, bits) for quantizer in (SAWB, LSQ) for bits in range(1 if quantizer is SAWB else 2, 9)]


@pytest.mark.parametrize(
    ("quantizer", "bits"), [w if w in QUICK else pytest.param(*w, marks=pytest.mark.slow) for w in WIDTHS_OF]
)
def test_linear_layers_of_every_width_pass_the_usual_transformations(bits, quantizer, tmp_path):
    pytest.importorskip("qonnx")
    layers = [nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.ReLU(), nn.Linear(4, 3)]
    x = torch.randn(16, 6)
    model = prepared(nn.Sequential(*layers), x, quantizer(bits), PACT(bits), ends=bits if bits > 1 else 8)
    program, path = lower(model, x[:1]), tmp_path / "net.onnx"
    write_onnx(quant_graph(program), path)
    kinds = [node.op_type for node in read_onnx(path)[0].graph.node]
    assert "Gemm" not in kinds and kinds.count("MatMul") == 3 and ("BipolarQuant" in kinds) == (bits == 1)
    for names in (*USUAL.values(), sum(USUAL.values(), ())):
        few = x[:3]
        np.testing.assert_allclose(answers(transformed(path, *names), few), Twin(program)(few), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["two bits", "one bit", "lsq"])
def test_convolutions_pass_them_too(name, tmp_path):
    """And what only convolutions need; channels last with what a fork of them needs before."""
    pytest.importorskip("qonnx")
    case, path = lowered(name), tmp_path / "net.onnx"
    write_onnx(quant_graph(case.program), path)
    x, expected = case.x[:4], case.twin(case.x[:4])
    first = ("channels_last.InsertChannelsLastDomainsAndTrafos", "channels_last.MoveTransposePastFork")
    last = (*first, "channels_last.ConvertToChannelsLastAndClean")
    lowered_ = ("extract_conv_bias.ExtractBiasFromConv", "lower_convs_to_matmul.LowerConvsToMatMul")
    for names in (*USUAL.values(), sum(USUAL.values(), ()), lowered_, last):
        np.testing.assert_allclose(answers(transformed(path, *names), x), expected, rtol=1e-4, atol=1e-4)


def test_the_types_of_codes_are_whole_numbers(tmp_path):
    """Not values with a scale, which flows would have to move out of the way first."""
    pytest.importorskip("qonnx")
    write_onnx(quant_graph(lowered("two bits").program), tmp_path / "net.onnx")
    model = transformed(tmp_path / "net.onnx", "infer_datatypes.InferDataTypes")
    kinds = {node.op_type: model.get_tensor_datatype(node.output[0]).name for node in model.graph.node}
    assert kinds["Quant"].startswith(("INT", "UINT")) and kinds["MaxPool" if "MaxPool" in kinds else "Conv"] == "INT32"


def test_an_input_on_a_tie_gets_the_code_that_training_gave_it():
    """Pixels have 256 values: where one lies in the middle of two codes, all of that value do."""
    pytest.importorskip("qonnx")
    pixels = ((torch.arange(256) / 255 - 0.485) / 0.229)[:, None].float()
    for seed in range(12):
        torch.manual_seed(seed)
        model = prepared(nn.Sequential(nn.Linear(1, 2)), pixels, SAWB(8), PACT(8))
        model[0].act_quantizer.clip.data *= torch.rand(())
        graph = quant_graph(lower(model, pixels[:1]))
        (got,) = ENGINES["qonnx"](graph.SerializeToString())({"input": pixels.numpy()})
        np.testing.assert_allclose(got, model(pixels).detach(), rtol=1e-4, atol=1e-4)
