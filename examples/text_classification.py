"""Classification of sentences at 4 bits with Hugging Face's Trainer: pip install 'spequant[text,train]'

python examples/text_classification.py                 sentences made up on the spot
python examples/text_classification.py --text FILE     lines LABEL<tab>SENTENCE, every fifth of which is for the test

The network is a small BERT with random weights. Others: AutoModelForSequenceClassification.from_pretrained(NAME), with
their tokenizer in place of `tokens`.
"""

import argparse
import random
from pathlib import Path

import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

import spequant
from spequant.integrations import QATTrainer
from spequant.quantizers import LSQ, LSQPlus
from spequant.train import evaluate

LENGTH = 16

parser = argparse.ArgumentParser()
parser.add_argument("--text", type=Path)
parser.add_argument("--steps", type=int, default=200)
parser.add_argument("--out", type=Path, default=Path("text-classification"))
given = parser.parse_args()
set_seed(0)


def made_up():
    """Praise and complaint; the word "not" turns the one into the other."""
    adjectives = {"good": ["fine", "great", "lovely"], "bad": ["awful", "dull", "poor"]}
    for _ in range(1500):
        thing, kind, turn = (
            random.choice(["film", "meal", "trip"]),
            random.choice(["good", "bad"]),
            random.random() < 0.3,
        )
        other = {"good": "bad", "bad": "good"}[kind]
        yield other if turn else kind, f"the {thing} was {'not ' * turn}{random.choice(adjectives[kind])}"


lines = [line.split("\t", 1) for line in given.text.read_text().splitlines()] if given.text else list(made_up())
names = sorted({label for label, _ in lines})
words = {word: i for i, word in enumerate(sorted({w for _, text in lines for w in text.lower().split()}), start=1)}


def tokens(text):
    ids = [words[word] for word in text.lower().split()][:LENGTH]
    padding = [0] * (LENGTH - len(ids))
    return {"input_ids": ids + padding, "attention_mask": [1] * len(ids) + padding}


items = [{**tokens(text), "labels": names.index(label)} for label, text in lines]
train, test = [item for i, item in enumerate(items) if i % 5], items[::5]


def batch(items):
    return {name: torch.tensor([item[name] for item in items]) for name in items[0]}


def trained(kind, network, lr, **more):
    """The accuracy on the test sentences before and after training."""
    settings = {"per_device_train_batch_size": 32, "learning_rate": lr, "max_steps": given.steps, "report_to": "none"}
    arguments = TrainingArguments(str(given.out), save_strategy="no", use_cpu=True, **settings)
    trainer = kind(network, arguments, train_dataset=train, data_collator=batch, **more)
    before = evaluate(network, [batch(test)]).accuracy
    trainer.train()
    return before, evaluate(network, [batch(test)]).accuracy


sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
settings = BertConfig(vocab_size=len(words) + 1, **sizes, max_position_embeddings=LENGTH, num_labels=len(names))
network = BertForSequenceClassification(settings)
_, floating = trained(Trainer, network, 3e-3)

model = spequant.prepare(network, weight=LSQ(4), act=LSQPlus(4), per_channel=True, products=8, residual=None)
spequant.calibrate(model, [batch(train[:64])], samples=64)
calibrated, low_bit = trained(QATTrainer, model, 1e-3, method=spequant.SPEQ(task=spequant.Classification()))
print(f"float {floating:.1f} %, 4 bits calibrated {calibrated:.1f} %, trained {low_bit:.1f} % of {len(test)} sentences")
