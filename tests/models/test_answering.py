"""Networks for question answering and their tokenizers, from folders: what they lack is named."""

import json

import pytest
import torch

from spequant.models import (
    configuration,
    configuration_from,
    configuration_told,
    load_tokenizer,
    make_answering,
    network_of,
)
from support.tokenizer import VOCABULARY, small_tokenizer
from support.transformers_networks import SIZES, answering, inputs, tokens

transformers = pytest.importorskip("transformers")


@pytest.fixture
def encoder(tmp_path):
    """A network in a folder, its name, and its tokenizer beside it."""
    network = answering()
    network.save_pretrained(tmp_path / "bert")
    small_tokenizer().save_pretrained(tmp_path / "bert")
    return network, f"transformers/{tmp_path / 'bert'}"


def test_a_network_has_its_weights_or_random_ones_of_its_configuration(encoder):
    network, name = encoder
    same, other, batch = make_answering(name, pretrained=True), make_answering(name), inputs(tokens())
    assert same.training and other.training
    assert torch.equal(same.eval()(**batch).start_logits, network(**batch).start_logits)
    assert not torch.equal(other.eval()(**batch).start_logits, network(**batch).start_logits)
    assert len(load_tokenizer(name)) == len(VOCABULARY)


def test_a_configuration_is_told_without_where_it_was_read_and_made_again(encoder):
    _, name = encoder
    told = json.loads(json.dumps(configuration_told(make_answering(name, pretrained=True))))
    assert name.removeprefix("transformers/") not in json.dumps(told)
    again = network_of(configuration_from(told))
    assert {n: p.shape for n, p in again.named_parameters()} == {n: p.shape for n, p in encoder[0].named_parameters()}
    with pytest.raises(ValueError, match="configuration cannot be read"):
        configuration_from({"model_type": "nothing"})


def test_a_head_that_is_missing_is_named_and_made_on_request(encoder, tmp_path):
    _, name = encoder
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"weights lack qa_outputs.*--network\.new-head .*qa_outputs"):
        make_answering(name, pretrained=True)
    assert make_answering(name, pretrained=True, new_head=True).qa_outputs.weight.shape == (2, SIZES["hidden_size"])


@pytest.mark.parametrize(
    ("load", "what"), [(load_tokenizer, "a tokenizer"), (configuration, r"config\.json"), (make_answering, "config")]
)
def test_what_is_not_there_is_named(load, what):
    with pytest.raises(ValueError, match=rf"network\.name is 'transformers//nowhere': expected {what}"):
        load("transformers//nowhere")
    with pytest.raises(ValueError, match=r"'transformers//nowhere': .*question answering"):
        make_answering("transformers//nowhere", pretrained=True)
