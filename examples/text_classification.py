"""Sentences classified at 4 bits with Hugging Face's Trainer and a pipeline: pip install 'spequant[text,train]'

python examples/text_classification.py                 sentences made up on the spot
python examples/text_classification.py --text FILE     lines LABEL<tab>SENTENCE, every fifth of which is for the test

The network is a small BERT with random weights. Others: AutoModelForSequenceClassification.from_pretrained(NAME), with
AutoTokenizer.from_pretrained(NAME).
"""

import argparse
import random
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

import spequant
from spequant.integrations import QATTrainer, task_of
from spequant.quantizers import LSQ, LSQPlus
from spequant.train import evaluate

LENGTH = 16

parser = argparse.ArgumentParser()
parser.add_argument("--text", type=Path)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--out", type=Path, default=Path("text-classification"))
given = parser.parse_args()
transformers.set_seed(0)


def made_up():
    """Praise and complaint; the word "not" turns the one into the other."""
    adjectives = {"good": ["fine", "great", "lovely"], "bad": ["awful", "dull", "poor"]}
    for _ in range(1500):
        thing, kind = random.choice(["film", "meal", "trip"]), random.choice(["good", "bad"])
        turn = random.random() < 0.3
        other = {"good": "bad", "bad": "good"}[kind]
        yield other if turn else kind, f"the {thing} was {'not ' * turn}{random.choice(adjectives[kind])}"


lines = [line.split("\t", 1) for line in given.text.read_text().splitlines()] if given.text else list(made_up())
names = sorted({label for label, _ in lines})
words = ["[PAD]", "[UNK]", *sorted({w for _, text in lines for w in text.lower().split()})]
inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.WhitespaceSplit()
special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "model_max_length": LENGTH}
tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **special)
batch = transformers.default_data_collator
encoded = [tokenizer(text, padding="max_length", truncation=True) for _, text in lines]
items = [{**inputs, "labels": names.index(label)} for inputs, (label, _) in zip(encoded, lines, strict=True)]
train, test = [item for i, item in enumerate(items) if i % 5], batch(items[::5])


def trained(kind, network, lr, **more):
    """The accuracy on the test sentences before and after training."""
    settings = {"per_device_train_batch_size": 32, "learning_rate": lr, "max_steps": given.steps, "report_to": "none"}
    arguments = transformers.TrainingArguments(str(given.out), save_strategy="no", use_cpu=True, **settings)
    trainer = kind(network, arguments, train_dataset=train, **more)
    before = evaluate(network, [test]).accuracy
    trainer.train()
    return before, evaluate(network, [test]).accuracy


sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
sizes |= {"vocab_size": len(words), "max_position_embeddings": LENGTH}
labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
network = transformers.BertForSequenceClassification(transformers.BertConfig(**sizes, **labels))
_, floating = trained(transformers.Trainer, network, 3e-3)

model = spequant.prepare(network, weight=LSQ(4), act=LSQPlus(4), per_channel=True, products=8, residual=None)
spequant.calibrate(model, [batch(train[:64])], samples=64)
calibrated, low_bit = trained(QATTrainer, model, 1e-3, method=spequant.SPEQ(task=task_of(model)))
print(f"float {floating:.1f} %, 4 bits calibrated {calibrated:.1f} %, trained {low_bit:.1f} % of the test sentences")

folder, sentence = str(given.out / "low-bit"), lines[0][1]
model.save_pretrained(folder)
tokenizer.save_pretrained(folder)
answer = transformers.pipeline("text-classification", model=folder)(sentence)[0]
print(f"{folder}: {sentence!r} is {answer['label']} ({answer['score']:.0%})")
