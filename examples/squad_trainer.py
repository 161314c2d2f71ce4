"""Question answering at 4 bits with Hugging Face's Trainer: pip install 'spequant[text,train]'

python examples/squad_trainer.py NETWORK SQUAD --questions 200 --steps 20      without these two: all, two epochs

NETWORK: a folder or a name of the hub, best one trained on SQuAD in float. SQUAD: has train-v1.1.json, dev-v1.1.json.
"""

import argparse
from pathlib import Path

from torch.utils.data import DataLoader, Dataset
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    DataCollatorWithPadding,
    TrainingArguments,
    set_seed,
)

import spequant
from spequant.data.answers import best_answers, exact_match_and_f1
from spequant.data.squad import load_squad
from spequant.data.windows import make_windows
from spequant.integrations import QATTrainer
from spequant.methods.tasks import SpanExtraction
from spequant.quantizers import LSQ, LSQPlus


class Items(Dataset):
    """A window an item; the collator pads those of a batch."""

    def __init__(self, windows):
        self.windows = windows

    def __len__(self):
        return len(self.windows)

    def __getitem__(self, i):
        w, row = self.windows, slice(self.windows.bounds[i], self.windows.bounds[i + 1])
        item = {"input_ids": w.tokens[row].tolist(), "attention_mask": [1] * int(w.lengths[i])}
        if w.types is not None:
            item["token_type_ids"] = w.types[row].tolist()
        return {**item, "start_positions": int(w.starts[i]), "end_positions": int(w.ends[i])}


parser = argparse.ArgumentParser()
parser.add_argument("network")
parser.add_argument("squad", type=Path)
parser.add_argument("--questions", type=int)
parser.add_argument("--steps", type=int, default=-1)
parser.add_argument("--out", type=Path, default=Path("squad-w4a4"))
given = parser.parse_args()
set_seed(0)

tokenizer = AutoTokenizer.from_pretrained(given.network)
collator = DataCollatorWithPadding(tokenizer)
length = min(384, tokenizer.model_max_length)
train, dev = (questions[: given.questions] for questions in load_squad(given.squad))
items = Items(make_windows(train, tokenizer, max_length=length, stride=length // 3))
windows = make_windows(dev, tokenizer, max_length=length, stride=length // 3, offsets=True)

network = AutoModelForQuestionAnswering.from_pretrained(given.network)
model = spequant.prepare(network, weight=LSQ(4), per_channel=True, act=LSQPlus(4), products=8, residual=None)
spequant.calibrate(model, DataLoader(items, 8, shuffle=True, collate_fn=collator), samples=min(64, len(items)))

settings = {"per_device_train_batch_size": 8, "learning_rate": 5e-5, "num_train_epochs": 2, "logging_steps": 5}
trainer = QATTrainer(
    model,
    TrainingArguments(str(given.out), max_steps=given.steps, **settings),
    method=spequant.SPEQ(task=SpanExtraction()),
    train_dataset=items,
    data_collator=collator,
)
trainer.train()

start, end = trainer.predict(Items(windows)).predictions
exact, f1 = exact_match_and_f1(best_answers(windows, dev, start, end), dev)
print(f"exact match {exact:.2f}, F1 {f1:.2f} on {len(dev)} questions")
file = given.out / "model.packed"
spequant.pack(trainer.model, file)
print(f"{file}: {file.stat().st_size / 1e6:.1f} MB")
