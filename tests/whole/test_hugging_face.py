"""Hugging Face's networks as docs/hugging_face.md has them: its code runs, from a folder to a pipeline's answer."""

import re
from pathlib import Path

import pytest
import torch
import transformers

from spequant.preparation.description import describe
from support.pretrained_networks import BERT, outputs
from support.tokenizer import VOCABULARY, small_tokenizer

PAGE = Path(__file__).parents[2] / "docs" / "hugging_face.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    tokenizer = small_tokenizer()
    config = transformers.BertConfig(**BERT | {"vocab_size": len(VOCABULARY), "num_labels": 2})
    transformers.BertForSequenceClassification(config).save_pretrained("float")
    tokenizer.save_pretrained("float")
    texts = ["the king built the bridge", "who built the old town", "the river", "stone bridges"] * 256
    encoded = tokenizer(texts, padding=True, return_tensors="pt")
    data = [{**{name: t[i] for name, t in encoded.items()}, "labels": i % 2} for i in range(16)]
    given = {"FOLDER": "float", "batches": [dict(encoded)], "data": data, "tokenizer": tokenizer}
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    trained, loaded = dict(given), {}
    exec(blocks[0], trained)
    exec(blocks[1], loaded)
    answer = re.search(r"'label': 'LABEL_[01]', 'score': 0\.\d+", capsys.readouterr().out)
    model, again = trained["model"].eval(), loaded["model"]
    batch = {name: tensor[:8] for name, tensor in encoded.items()}
    assert answer and describe(model) == describe(again)
    assert torch.equal(outputs(model, batch)[0], outputs(again, batch)[0])
    assert len(blocks) == 2
