"""Hugging Face's Trainer on networks for question answering of one layer."""

import copy
import gc
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import transformers
from torch import nn
from torch.utils.data import Dataset

import spequant
from spequant.integrations import QATTrainer
from spequant.methods.tasks import SpanExtraction
from spequant.quantizers import LSQ, LSQPlus, percentile
from support.transformers_networks import LENGTH, answering, inputs, tokens

STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


class Questions(Dataset):
    """Rows of `tokens`; cut: without their padding."""

    def __init__(self, samples=24, seed=0, cut=False, without=()):
        self.batch = {k: v for k, v in tokens(samples, seed=seed).items() if k not in without}
        self.cut = cut

    def __len__(self):
        return len(self.batch["input_ids"])

    def __getitem__(self, i):
        row = {name: values[i] for name, values in self.batch.items()}
        width = int(row["attention_mask"].sum()) if self.cut else LENGTH
        return {name: values[:width] if values.dim() else values for name, values in row.items()}


def padded(rows):
    """A batch as wide as its longest row."""
    return {
        name: nn.utils.rnn.pad_sequence([row[name] for row in rows], batch_first=True)
        if rows[0][name].dim()
        else torch.stack([row[name] for row in rows])
        for name in rows[0]
    }


def prepared(network=None, *, calibrate=True, act=None, seed=0, **changes):
    """Of a network made anew, its settings changed; copies are given out, as calibration takes time."""
    key = repr((calibrate, act, seed, changes))
    if network is None and key in MADE:
        return copy.deepcopy(MADE[key])
    torch.manual_seed(seed)
    given = answering(**changes) if network is None else network
    model = spequant.prepare(given, weight=LSQ(4), per_channel=True, act=act or LSQPlus(4), products=4, residual=None)
    if calibrate:
        calibrated(model)
    if network is None:
        MADE[key] = copy.deepcopy(model)
    return model


MADE: dict[str, nn.Module] = {}


def calibrated(model):
    """By a quick rule: which ranges they are is of no matter here."""
    spequant.calibrate(model, [inputs(tokens(16))], samples=16, rule=percentile(99.9))
    return model


@contextmanager
def little_garbage() -> Iterator[None]:
    """Inside, a Trainer starts at once: it collects garbage, for a third of a second where it looks through torch."""
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class At(transformers.TrainerCallback):
    """Calls `do` with the network at an event, at one step or at each."""

    def __init__(self, event, do, step=None):
        def called(args, state, control, **given):
            if step in (None, state.global_step):
                do(given["model"])

        setattr(self, event, called)


def interrupt(model):
    raise KeyboardInterrupt


def copied(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal_states(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def arguments(folder, **changes):
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "per_device_eval_batch_size": 4,
        "learning_rate": 1e-3,
        "weight_decay": 0.1,
        "logging_steps": 2,
        "save_strategy": "no",
        "use_cpu": True,
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    return transformers.TrainingArguments(str(folder), **{**settings, **changes})


def trainer(folder, model=None, method=None, *, rows=None, changes=None, **given):
    given = {"train_dataset": rows or Questions(), "eval_dataset": Questions(10, seed=1), **given}
    method = method or spequant.SPEQ(task=SpanExtraction())
    return QATTrainer(model or prepared(), arguments(folder, **(changes or {})), method=method, **given)
