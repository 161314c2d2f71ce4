"""Attention's products on quantized operands; and that adapted networks are copied, saved, loaded and compiled."""

import copy
import io
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import spequant
from reference.attention import attention
from spequant.layers import QuantizedProduct, act_quantizers, act_slots
from spequant.preparation.adapters.products import Product
from spequant.quantizers import LSQ, PACT, SAWB
from support.attention import NETWORKS, Attending, gradients, quantized

COUNTS = {"ViT": 4, "timm Swin": 4, "torchvision Swin": 8, "torchvision Swin V2": 8}


@pytest.mark.parametrize("name", COUNTS)
def test_both_sides_of_every_product_have_few_values(name):
    network, x = NETWORKS[name]().eval(), torch.randn(2, 3, 32, 32)
    model = quantized(network, x, products=3, residual=None)
    seen: list[tuple[int, int]] = []
    products = [m for m in model.modules() if isinstance(m, QuantizedProduct)]
    for m in products:
        m.product.register_forward_pre_hook(lambda m, sides: seen.append(tuple(len(s.unique()) for s in sides)))
    grads = gradients(model, model(x))
    assert len(seen) == len(products) == COUNTS[name] and all(n <= 8 for pair in seen for n in pair)
    assert all(n > 1 for pair in seen[::2] for n in pair)  # queries and keys; probabilities may all be alike
    assert all(g is not None for n, g in grads.items() if "left_quantizer" in n or "right_quantizer" in n)
    weights = [p.right_quantizer.signed or p.left_quantizer.signed for p in products]
    assert weights[1::2] == [True] * len(weights[1::2])  # values have a sign,
    assert not any(p.left_quantizer.signed for p in products[1::2])  # probabilities none
    plain = spequant.unprepare(model)
    assert [type(m) for m in plain.modules()] == [type(m) for m in network.modules()]
    torch.testing.assert_close(plain(x), network(x), rtol=1e-4, atol=1e-5)


def test_without_products_only_layers_are_quantized():
    network, x = NETWORKS["ViT"]().eval(), torch.randn(2, 3, 32, 32)
    model = quantized(network, x, residual=None)
    assert not any(isinstance(m, QuantizedProduct | Product) for m in model.modules())
    assert type(model.blocks[0].attn) is type(network.blocks[0].attn)
    model = quantized(Attending(), torch.randn(8, 5, 8))
    assert type(model.attention.scores) is Product and not any("scores" in n for n in act_quantizers(model))


def test_quantized_attention_equals_its_literal_twin():
    x = torch.randn(8, 5, 8)
    model = quantized(Attending(), x, products=4).eval()
    inner = model.attention
    mask = torch.linspace(-2, 2, 25).view(5, 5)
    q, k, v = (
        layer(x).view(8, 5, 2, 4).transpose(1, 2).detach().double().numpy() for layer in (inner.q, inner.k, inner.v)
    )
    quantizers = [getattr(p, f"{side}_quantizer") for p in (inner.scores, inner.mix) for side in ("left", "right")]
    grids = [(*(float(b.detach()) for b in g.bounds(x)), int(g.levels)) for g in quantizers]
    literal = attention(q, k, v, np.broadcast_to(mask.numpy(), (8, 2, 5, 5)), grids)
    mixed = torch.from_numpy(literal).float().transpose(1, 2).flatten(2)
    for form in ({"need_weights": False}, {}):
        torch.testing.assert_close(inner(x, x, x, attn_mask=mask, **form)[0], inner.out_proj(mixed))


class Marked(nn.Module):
    """A product that the network marks."""

    attention_product = True

    def forward(self, left, right):
        return torch.einsum("bnd,bmd->bnm", left, right)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.product = nn.Linear(4, 4), nn.Linear(4, 4), Marked()

    def forward(self, x):
        return self.product(self.a(x), self.b(x))


def test_products_that_a_network_marks_are_quantized():
    x = torch.randn(8, 3, 4)
    model = quantized(Own(), x, products=5)
    assert type(model.product) is QuantizedProduct and type(model.product.product) is Marked
    assert {f"product.{side}" for side in ("left", "right")} < set(act_quantizers(model))
    left, right = torch.randn(2, 2, 3, 4)
    literal = model.product.left_quantizer(left) @ model.product.right_quantizer(right).transpose(1, 2)
    torch.testing.assert_close(model.product(left, right), literal)
    assert type(quantized(Own(), x).product) is Marked
    assert type(spequant.unprepare(model).product) is Marked
    other = quantized(Own(), x, products=PACT(6))
    assert type(other.product.left_quantizer) is PACT and other.product.right_quantizer.bits == 6


def test_products_that_a_network_does_not_have_are_refused():
    network = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    with pytest.raises(ValueError, match=r"products is 8.*attention_product"):
        spequant.prepare(network, weight=LSQ(2), act=LSQ(2), products=8)
    with pytest.raises(ValueError, match="SAWB was given for"):
        spequant.prepare(Own(), weight=LSQ(2), act=LSQ(2), products=SAWB(4))


def test_precision_of_products_switches_with_that_of_layers():
    x = torch.randn(8, 5, 8)
    model = quantized(Attending(), x, products=3)
    with spequant.precision(model, spequant.Fixed({"*.scores.*": 8})):
        assert len(model.attention.scores.left_quantizer(x).unique()) > 8
    assert len(model.attention.scores.left_quantizer(x).unique()) <= 8


# --- copies, files and graphs --------------------------------------------------------------------------------------

WHOLE = {
    "attention": lambda: (Attending(), torch.randn(8, 5, 8)),
    "torchvision Swin": lambda: (NETWORKS["torchvision Swin"](), torch.randn(2, 3, 32, 32)),
    "ViT": lambda: (NETWORKS["ViT"](), torch.randn(2, 3, 32, 32)),
}


@pytest.mark.parametrize("name", WHOLE)
def test_copies_pickles_and_states_give_equal_outputs(name):
    network, x = WHOLE[name]()
    model = quantized(network, x, products=8).eval()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)]
    fresh = spequant.prepare(WHOLE[name]()[0], weight=LSQ(2), act=LSQ(3), ends=2, products=8).eval()
    fresh.load_state_dict(model.state_dict())
    for other in (*others, fresh):
        assert torch.equal(other(x), model(x))
    assert len(act_slots(fresh)) == len(act_slots(model)) and len(act_quantizers(fresh)) == len(act_quantizers(model))


# Compiled in a separate process, because the run-time checks of shapes, which tests switch on, cannot be traced.
COMPILED = """
import torch, spequant
from support.additions import Block
from support.attention import NETWORKS, Attending, quantized
torch.set_num_threads(1)
for network, x, options in (CASES):
    model, graphs = quantized(network, x, **options), []
    torch._dynamo.reset()
    compiled = torch.compile(model, backend=lambda graph, inputs: graphs.append(graph) or graph, fullgraph=True)
    for step in range(3):
        with spequant.precision(model, spequant.Stochastic(8), step=step):
            torch.testing.assert_close(compiled(x), model(x))
    print(len(graphs))
"""


SMALL = """
    (Attending(), torch.randn(8, 5, 8), {"products": 8}),
    (Block("x + f(x)"), torch.randn(4, 3, 8, 8), {}),
"""
WHOLE_NETWORKS = """
    (Attending(), torch.randn(8, 5, 8), {}),
    (NETWORKS["ViT"](), torch.randn(2, 3, 32, 32), {"products": 8}),
    (NETWORKS["torchvision Swin"](), torch.randn(2, 3, 32, 32), {}),
"""


@pytest.mark.slow
@pytest.mark.parametrize("cases", [SMALL, WHOLE_NETWORKS], ids=["small", "whole networks"])
def test_compiled_without_a_break_and_without_a_graph_for_each_precision(cases):
    script = COMPILED.replace("CASES", cases)
    command, folder = [sys.executable, "-c", script], Path(__file__).parents[2]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.split() == ["1"] * cases.count("torch.randn")
