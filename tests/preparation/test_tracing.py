"""Graphs of networks, and the reasons why some networks cannot be traced."""

import pytest
import torch
from torch import nn

from spequant.preparation.tracing import traced


class Decides(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Loops(nn.Module):
    def forward(self, images):
        return [image.mean() for image in images]


@pytest.mark.parametrize(("network", "reason"), [(Decides(), "control flow"), (Loops(), "iterated")])
def test_why_a_network_cannot_be_traced_is_one_sentence(network, reason):
    with pytest.raises(ValueError, match=reason) as error:
        traced(network)
    assert "\n" not in str(error.value) and "co_varnames" not in str(error.value) and len(str(error.value)) < 120


def test_a_forward_that_hides_its_inputs_is_named():
    from transformers import BertConfig, BertForSequenceClassification, BertModel

    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    with pytest.raises(ValueError, match=r"takes \*args"):
        traced(BertForSequenceClassification(config))
    with pytest.raises(ValueError, match=r"placeholder for an input \(AttributeError"):
        traced(BertModel(config))


def test_an_optional_argument_has_its_default():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x, mask=None):
            return self.layer(x) if mask is None else self.layer(x) * mask

    tracer, graph = traced(Masked())
    assert [node.target for node in graph.nodes if node.op == "call_module"] == ["layer"]
    assert tracer.calls["layer"] == 1 and torch.is_tensor(tracer.root.layer.weight)
