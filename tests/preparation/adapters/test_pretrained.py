"""Networks of transformers: saved with their quantizers, loaded again, equal to the last bit."""

import copy
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

import spequant
import spequant.integrations
from spequant.preparation.description import describe
from spequant.quantizers import CSQ, LSQ, PACT, SAWB, APoT, DoReFa, LeastSquares, LSQPlus, MinMax, percentile, set_ewgs
from spequant.train.freezing import OscillationFreezer
from support.own_quantizers import Padded, hidden
from support.pretrained_networks import BERT, NETWORKS, PlainConfig, Residual, inputs_of, made, outputs

PRODUCTS = {"bert", "distilbert", "roberta", "albert", "gpt2", "vit", "encoder", "bert, tied head"}
TRACEABLE = {"residual", "encoder"}
LOW = {"weight": LSQ(3), "act": LSQPlus(3), "per_channel": True}


def prepared(name, **options):
    """(calibrated network, inputs)."""
    found = {"products": 8 if name in PRODUCTS else None, "residual": 8 if name in TRACEABLE else None}
    options = {**LOW, **found, **options}
    batch = inputs_of(name)
    model = spequant.prepare(made(name), **options)
    spequant.calibrate(model, [batch], samples=8, rule=percentile(99.9), reestimate=False)
    return model.eval(), batch


def loaded(model, folder, **options):
    model.save_pretrained(folder)
    again, report = type(model).from_pretrained(folder, output_loading_info=True, **options)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return again


def check_equal(model, again, batch):
    expected, actual = outputs(model, batch), outputs(again, batch)
    assert len(expected) == len(actual) and all(torch.equal(a, b) for a, b in zip(expected, actual, strict=True))
    assert describe(model) == describe(again) and not again.training
    a, b = model.state_dict(), again.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_a_bert_is_saved_and_loaded_to_equal_answers(tmp_path):
    model, batch = prepared("bert")
    again = loaded(model, tmp_path)
    check_equal(model, again, batch)
    assert not torch.equal(outputs(model, batch)[0], outputs(spequant.unprepare(model), batch)[0])
    content = json.loads((tmp_path / "config.json").read_text())["quantization_config"]
    assert content["quant_method"] == "spequant" and content["version"] == 1
    names = {form["name"]: form["settings"]["bits"] for form in content["quantizers"]}
    assert names["bert.embeddings.word_embeddings"] == 8 and names["bert.encoder.layer.0.output.dense"] == 3
    assert content["slots"]["classifier.act_quantizer"] is not None


def test_a_quantizer_without_a_name_is_refused_on_saving(tmp_path):
    model = spequant.prepare(made("bert"), weight=hidden()(3), act=None)
    with pytest.raises(ValueError, match=r"bert\.embeddings\.word_embeddings, Hidden: .*own_quantizers"):
        model.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_each_network_is_loaded_to_equal_answers(name, tmp_path):
    model, batch = prepared(name)
    again = loaded(model, tmp_path)
    check_equal(model, again, batch)
    with spequant.precision(model, spequant.Fixed(6)), spequant.precision(again, spequant.Fixed(6)):
        assert all(torch.equal(a, b) for a, b in zip(outputs(model, batch), outputs(again, batch), strict=True))
    check_equal(model, loaded(again, tmp_path / "again"), batch)
    assert (tmp_path / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


WAYS = {
    "SAWB, PACT": {"weight": SAWB(2), "act": PACT(2, decay=0.1), "per_channel": False},
    "APoT, DoReFa": {"weight": APoT(4), "act": DoReFa(4), "products": MinMax(6)},
    "CSQ, MinMax": {"weight": CSQ(3), "act": MinMax(3, percentile=99.5), "products": LSQ(4)},
    "LeastSquares, several widths": {
        "weight": LeastSquares(2, zero=False),
        "embeddings": 4,
        "ends": (5, None),
        "overrides": {"*.query": (2, 7), "*.intermediate.dense": None, "*.output.dense": (LSQ(3), PACT(6))},
        "skip": ["bert.pooler.*"],
    },
    "own quantizers": {"weight": Padded(3, margin=0.5), "act": Padded(4), "products": None},
    "weights alone": {"weight": LSQ(4), "act": None, "products": None},
    "activations alone": {"weight": None, "act": LSQPlus(4)},
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_each_way_to_prepare_is_loaded_to_equal_answers(name, tmp_path):
    model, batch = prepared("bert", **WAYS[name])
    check_equal(model, loaded(model, tmp_path), batch)


@pytest.mark.slow
def test_training_goes_on_from_a_loaded_network(tmp_path):
    model, batch = prepared("bert", act=LSQPlus(3))
    set_ewgs(model, 0.01)
    OscillationFreezer(model, threshold=0.1)
    for module in model.modules():
        if getattr(module, "frozen", None) is not None:
            module.frozen.fill_(True)
    again = loaded(model, tmp_path)
    check_equal(model, again, batch)
    states = []
    for network in (model, again):
        network.eval()
        optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
        network(**batch).logits.square().mean().backward()
        optimizer.step()
        states.append(network.state_dict())
    assert all(torch.equal(tensor, states[1][key]) for key, tensor in states[0].items())
    trainable = [[(n, p.requires_grad) for n, p in m.named_parameters()] for m in (model, again)]
    assert trainable[0] == trainable[1]


@pytest.mark.slow
def test_tied_weights_stay_tied_and_are_stored_once(tmp_path):
    model, batch = prepared("bert, tied head", embeddings=4, ends=(4, 8))
    again = loaded(model, tmp_path)
    check_equal(model, again, batch)
    table, head = again.bert.embeddings.word_embeddings, again.cls.predictions.decoder
    assert table.layer.weight is head.layer.weight and table.weight_quantizer is head.weight_quantizer
    names = load_file(tmp_path / "model.safetensors").keys()
    assert "bert.embeddings.word_embeddings.weight" in names and "cls.predictions.decoder.weight" not in names


@pytest.mark.slow
def test_half_precision_in_several_files(tmp_path):
    model, batch = prepared("bert")
    model.to(torch.bfloat16)
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path)
    check_equal(model, again, batch)
    assert again.classifier.layer.weight.dtype == torch.bfloat16
    assert again.classifier.weight_quantizer.step.dtype == torch.float32
    again.float()  # a prepared network is converted as a float one is
    assert again.classifier.layer.weight.dtype == torch.float32


@pytest.mark.slow
def test_the_base_is_loaded_without_the_head_and_another_head_is_refused(tmp_path):
    model, batch = prepared("bert")
    model.save_pretrained(tmp_path)
    base = transformers.AutoModel.from_pretrained(tmp_path)
    assert type(base) is transformers.BertModel
    for a, b in zip(outputs(model.bert, batch), outputs(base, batch), strict=True):
        assert torch.equal(a, b)
    model.bert.save_pretrained(tmp_path / "base")  # a part saves itself, too
    check_equal(model.bert, transformers.AutoModel.from_pretrained(tmp_path / "base"), batch)
    with pytest.raises(ValueError, match=r"BertForSequenceClassification, .*BertForTokenClassification"):
        transformers.AutoModelForTokenClassification.from_pretrained(tmp_path)
    partly, _ = prepared("bert", skip=["bert.*"], products=None)
    partly.save_pretrained(tmp_path / "whole")
    partly.bert.save_pretrained(tmp_path / "part")
    assert "quantization_config" not in json.loads((tmp_path / "part" / "config.json").read_text())
    part = transformers.AutoModel.from_pretrained(tmp_path / "part")
    assert torch.equal(outputs(part, batch)[0], outputs(partly.bert, batch)[0])


@pytest.mark.slow
def test_the_float_network_saves_itself_as_ever(tmp_path):
    model, batch = prepared("gpt2")
    model.save_pretrained(tmp_path / "low")
    network = spequant.unprepare(loaded(model, tmp_path / "low"))
    for float_network in (network, loaded(model, tmp_path / "low").dequantize()):
        float_network.save_pretrained(tmp_path / "float")
        assert "quantization_config" not in json.loads((tmp_path / "float" / "config.json").read_text())
        again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "float")
        assert torch.equal(outputs(again, batch)[0], outputs(float_network, batch)[0])
    assert not hasattr(network.config, "quantization_config") and not hasattr(network, "hf_quantizer")
    assert "quantization_config" in json.loads((tmp_path / "low" / "config.json").read_text())


@pytest.mark.slow
def test_copies_and_pickles_save_themselves(tmp_path):
    model, batch = prepared("vit")
    for number, other in enumerate((copy.deepcopy(model), pickle.loads(pickle.dumps(model)))):
        with torch.no_grad():
            other.classifier.layer.weight.mul_(2)
        check_equal(other, loaded(other, tmp_path / str(number)), batch)


@pytest.mark.slow
def test_the_attention_function_is_the_callers_choice(tmp_path):
    model, batch = prepared("bert", products=None)
    again = loaded(model, tmp_path, attn_implementation="eager")
    model.set_attn_implementation("eager")
    check_equal(model, again, batch)


@pytest.mark.slow
def test_a_network_from_a_packed_file_is_saved_and_loaded(tmp_path):
    model, batch = prepared("gpt2")
    spequant.pack(model, tmp_path / "net.packed")
    packed = spequant.load_packed(tmp_path / "net.packed", spequant.unprepare(model))
    check_equal(packed, loaded(packed, tmp_path / "low", device_map="cpu"), batch)


# --- pipelines -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("task", ["text-classification", "token-classification"])
def test_a_pipeline_of_a_folder_answers_as_the_network_does(task, tmp_path):
    from support.tokenizer import small_tokenizer

    model, _ = prepared("bert" if task == "text-classification" else "distilbert")
    tokenizer = small_tokenizer()
    if task == "token-classification":
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts = ["the king of old stone", "who built the bridge"]
    answers = transformers.pipeline(task, model=str(tmp_path))(texts)
    assert answers == transformers.pipeline(task, model=model, tokenizer=tokenizer)(texts)
    assert answers != transformers.pipeline(task, model=spequant.unprepare(model), tokenizer=tokenizer)(texts)


@pytest.mark.slow
def test_a_pipeline_for_images(tmp_path):
    from PIL import Image

    model, _ = prepared("vit")
    processor = transformers.ViTImageProcessor(size={"height": 16, "width": 16})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    image = Image.effect_noise((20, 20), 90).convert("RGB")
    answers = transformers.pipeline("image-classification", model=str(tmp_path))(image)
    assert answers == transformers.pipeline("image-classification", model=model, image_processor=processor)(image)


# --- what is refused -----------------------------------------------------------------------------------------------


WITHOUT = """
import sys, transformers
assert not any(name.startswith("spequant") for name in sys.modules)
transformers.AutoModelForSequenceClassification.from_pretrained(sys.argv[1])
"""


@pytest.mark.slow
def test_a_program_without_spequant_stops(tmp_path):
    prepared("bert")[0].save_pretrained(tmp_path)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", WITHOUT, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode and "RuntimeError" in done.stderr and "ignore_mismatched_sizes" in done.stderr
    assert "Unknown quantization type, got spequant" in done.stderr
    assert re.search(r"bert\.embeddings\.word_embeddings\.weight .*MISMATCH", done.stderr)


def changed(folder, **content):
    """config.json, with other entries in what it says of the quantizers."""
    file = folder / "config.json"
    config = json.loads(file.read_text())
    config["quantization_config"] |= content
    file.write_text(json.dumps(config))


@pytest.mark.slow
def test_a_folder_that_is_not_whole_is_refused(tmp_path):
    model, _ = prepared("bert")
    load = transformers.AutoModelForSequenceClassification.from_pretrained
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(
        {n: t for n, t in tensors.items() if n != "spequant.3.step"}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(ValueError, match=r"query\.weight_quantizer \(spequant\.3\).*step"):
        load(tmp_path)
    floats = {n: t for n, t in tensors.items() if not n.startswith("spequant")}
    save_file(floats, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"model\.safetensors.* no tensors"):
        load(tmp_path)
    model.save_pretrained(tmp_path)
    for content, message in (
        ({"version": 2}, "version is 2"),
        (
            {"slots": {"bert.pooler.weight_quantizer": 0, "bert.pooler.act_quantizer": 1}},
            r"'bert\.pooler', a BertPooler",
        ),
        ({"adapted": ["bert.encoder"]}, r"bert\.encoder, which BertForSequenceClassification"),
        ({"quantizers": [{"kind": "lsq"}]}, "slots has "),
    ):
        model.save_pretrained(tmp_path)
        changed(tmp_path, **content)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)


@pytest.mark.slow
def test_a_state_of_such_a_file_is_not_loaded_past_the_names(tmp_path):
    model, _ = prepared("bert")
    model.save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    for network in (model, copy.deepcopy(model)):
        with pytest.raises(ValueError, match=r"load_checkpoint\(model, folder\)"):
            network.load_state_dict(state, strict=False)
    model.load_state_dict(model.state_dict())
    network = spequant.unprepare(model)
    network.load_state_dict(network.state_dict())


@pytest.mark.slow
def test_a_float_network_is_not_quantized_by_loading(tmp_path):
    model, _ = prepared("bert")
    model.save_pretrained(tmp_path / "low")
    spequant.unprepare(model).save_pretrained(tmp_path / "float")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "low").quantization_config
    with pytest.raises(ValueError, match=r"spequant .*pre-quantized"):
        transformers.BertForSequenceClassification.from_pretrained(
            tmp_path / "float", quantization_config=transformers.quantizers.AutoQuantizationConfig.from_dict(config)
        )


@pytest.mark.slow
def test_a_network_inside_a_precision_context_is_not_saved(tmp_path):
    model, _ = prepared("bert")
    with spequant.precision(model, spequant.Fixed(8)), pytest.raises(RuntimeError, match="precision context"):
        model.save_pretrained(tmp_path)


@pytest.mark.slow
def test_a_network_around_one_of_transformers_saves_its_part(tmp_path):
    class Around(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.head = Residual(PlainConfig()), nn.Linear(3, 2)

        def forward(self, pixel_values):
            return self.head(self.inner(pixel_values))

    x = inputs_of("residual")["pixel_values"]
    model = spequant.prepare(Around().eval(), weight=LSQ(3), act=PACT(3), residual=None)
    spequant.calibrate(model, [x], samples=8)
    inner = model.eval().inner
    check_equal(inner, loaded(inner, tmp_path), {"pixel_values": x})


def test_configurations_of_float_networks_are_untouched():
    config = transformers.BertConfig(**BERT)
    network = transformers.BertForSequenceClassification(config)
    spequant.prepare(network, weight=LSQ(3), act=None)
    assert getattr(network, "hf_quantizer", None) is None and not hasattr(config, "quantization_config")
