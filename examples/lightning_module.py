"""SPEQ in Lightning: W2A2 on scikit-learn's digits, stopped half-way and resumed. Needs lightning and scikit-learn.

python examples/lightning_module.py

SPEQ draws the teacher's precision from (seed, step). Its step is in the checkpoint, next to Lightning's own, so that a
resumed run goes on with the draws of the uninterrupted one, and does not repeat the first ones. Batches are shuffled by
the epoch's number. So the resumed run ends, bit for bit, where the uninterrupted one does: the last lines compare them.
"""

import argparse
from pathlib import Path

import lightning
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import spequant
from spequant.quantizers import LSQ
from spequant.train import evaluate

parser = argparse.ArgumentParser()
parser.add_argument("--epochs", type=int, default=6)
parser.add_argument("--out", type=Path, default=Path("lightning-digits"))
given = parser.parse_args()
lightning.seed_everything(0)

digits = load_digits()
x, y = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(digits.target)
train, test = TensorDataset(x[:1400], y[:1400]), [(x[1400:], y[1400:])]


def batches(epoch):
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(epoch))
    return DataLoader(train, 50, sampler=order.tolist())


class Module(lightning.LightningModule):
    """A network that learns by SPEQ."""

    def __init__(self, network):
        super().__init__()
        self.network, self.method = network, spequant.SPEQ()

    def train_dataloader(self):
        return batches(self.current_epoch)

    def training_step(self, batch, index):
        losses = self.method(self.network, batch)
        self.log_dict({"task": losses.task, "distill": losses.distill})
        return losses.total

    def configure_optimizers(self):
        groups = spequant.parameter_groups(self.network, lr=0.02, weight_decay=1e-4)
        optimizer = torch.optim.SGD(groups, momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.epochs)]

    def on_save_checkpoint(self, checkpoint):
        checkpoint["method"] = self.method.state_dict()

    def on_load_checkpoint(self, checkpoint):
        self.method.load_state_dict(checkpoint["method"])


def trainer(epochs):
    off = ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing")
    each = {"reload_dataloaders_every_n_epochs": 1}  # batches of each epoch by its number
    return lightning.Trainer(max_epochs=epochs, accelerator="cpu", **each, **dict.fromkeys(off, False))


layers = nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10)
network = nn.Sequential(*layers)
floating = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
for epoch in range(given.epochs):
    for images, labels in batches(epoch):
        floating.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        floating.step()


def low_bit():
    model = spequant.prepare(network, weight=LSQ(2), act=LSQ(2))
    spequant.calibrate(model, batches(0), samples=500)
    return Module(model)


whole, resumed = low_bit(), low_bit()
trainer(given.epochs).fit(whole)
half = trainer(given.epochs // 2)
half.fit(low_bit())
half.save_checkpoint(given.out / "half.ckpt")
trainer(given.epochs).fit(resumed, ckpt_path=given.out / "half.ckpt", weights_only=True)
print(f"draws {resumed.method.step}, steps {given.epochs * len(batches(0))}")
print("resumed as uninterrupted:", all(map(torch.equal, whole.parameters(), resumed.parameters())))
before, after = (evaluate(trained, test).accuracy for trained in (network, resumed.network))
print(f"float {before:.1f} %, W2A2 {after:.1f} %")
