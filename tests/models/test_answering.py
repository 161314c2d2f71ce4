"""Networks for question answering, their configurations and tokenizers, from folders; errors name what is missing."""

import json

import pytest
import torch

from spequant.models import (
    answering_from,
    configuration,
    configuration_dict,
    load_tokenizer,
    make_answering,
    transformers_configuration,
)
from support.tokenizer import VOCABULARY, small_tokenizer
from support.transformers_networks import SIZES, answering, inputs, tokens

transformers = pytest.importorskip("transformers")


@pytest.fixture
def encoder(tmp_path):
    """A network and its name; its folder holds the network and its tokenizer."""
    network = answering()
    network.save_pretrained(tmp_path / "bert")
    small_tokenizer().save_pretrained(tmp_path / "bert")
    return network, f"transformers/{tmp_path / 'bert'}"


def test_a_network_has_its_trained_weights_or_random_ones(encoder):
    network, name = encoder
    trained, random, batch = make_answering(name, pretrained=True), make_answering(name), inputs(tokens())
    assert trained.training and random.training
    assert torch.equal(trained.eval()(**batch).start_logits, network(**batch).start_logits)
    assert not torch.equal(random.eval()(**batch).start_logits, network(**batch).start_logits)
    assert len(load_tokenizer(name)) == len(VOCABULARY)


def test_a_configuration_goes_through_json_without_its_path(encoder):
    network, name = encoder
    settings = json.loads(json.dumps(configuration_dict(make_answering(name, pretrained=True))))
    assert name.removeprefix("transformers/") not in json.dumps(settings)
    other = answering_from(transformers_configuration(settings))
    assert {n: p.shape for n, p in other.named_parameters()} == {n: p.shape for n, p in network.named_parameters()}
    with pytest.raises(ValueError, match="configuration cannot be read"):
        transformers_configuration({"model_type": "nothing"})


def test_a_missing_head_is_named_and_made_on_request(encoder, tmp_path):
    _, name = encoder
    transformers.BertModel(transformers.BertConfig(**SIZES)).save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match=r"weights lack qa_outputs.*--network\.new-head .*qa_outputs"):
        make_answering(name, pretrained=True)
    assert make_answering(name, pretrained=True, new_head=True).qa_outputs.weight.shape == (2, SIZES["hidden_size"])


@pytest.mark.parametrize(
    ("load", "what"), [(load_tokenizer, "a tokenizer"), (configuration, r"config\.json"), (make_answering, "config")]
)
def test_a_missing_folder_is_named(load, what):
    with pytest.raises(ValueError, match=rf"network\.name is 'transformers//nowhere': expected {what}"):
        load("transformers//nowhere")
    with pytest.raises(ValueError, match=r"'transformers//nowhere': .*question answering"):
        make_answering("transformers//nowhere", pretrained=True)
