"""Photos in folders by class, a network of your own, W3A3 by SPEQ, an ONNX file that runs without spequant.

python examples/image_folder.py                   makes pictures of stripes; needs 'spequant[vision,train,deploy]'
python examples/image_folder.py --root PHOTOS     reads PHOTOS/train/CLASS/*.jpg and PHOTOS/val/CLASS/*.jpg
--weights FILE                                    starts from float weights that were saved elsewhere
"""

import argparse
from itertools import product
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageOps
from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

import spequant
from spequant.methods import allow_float
from spequant.models import load_weights
from spequant.quantizers import LSQ
from spequant.train import evaluate

parser = argparse.ArgumentParser()
for name in ("--root", "--weights"):
    parser.add_argument(name, type=Path)
parser.add_argument("--out", type=Path, default=Path("image-folder"))
parser.add_argument("--epochs", type=int, default=4)
parser.add_argument("--pictures", type=int, default=48)
given = parser.parse_args()
given.out.mkdir(parents=True, exist_ok=True)
torch.manual_seed(0)
if given.root is None:
    given.root, rng, (rows, columns) = given.out / "pictures", np.random.default_rng(0), np.indices((48, 48))
    for part, (label, angle) in product(("train", "val"), {"rows": rows, "columns": columns}.items()):
        (folder := given.root / part / label).mkdir(parents=True, exist_ok=True)
        for i in range(given.pictures):
            stripes = 128 + 60 * np.sin(angle / 2 + rng.uniform(0, 6))[..., None] + rng.normal(0, 80, (48, 48, 3))
            Image.fromarray(stripes.clip(0, 255).astype(np.uint8)).save(folder / f"{i}.jpg")
steps = [ImageOps.exif_transpose, transforms.Resize(36), transforms.CenterCrop(32)]  # photos of phones: upright
steps += [transforms.ToTensor(), transforms.Normalize(0.5, 0.25)]
train, val = (datasets.ImageFolder(given.root / part, transforms.Compose(steps)) for part in ("train", "val"))
batches, test = DataLoader(train, 16, shuffle=True, drop_last=True), list(DataLoader(val, 64))
network = nn.Sequential()
for i, o in ((3, 16), (16, 32), (32, 32)):
    network.extend([nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU()])
network.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, len(train.classes))])


def fit(model, method, lr, best):
    """Train, and keep the best epoch's weights in `best`; ranges have a parameter group of their own, half as fast."""
    groups = spequant.parameter_groups(model, lr=lr, weight_decay=1e-4, range_lr=lr / 2)
    optimizer = torch.optim.SGD(groups, lr=lr, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, given.epochs * len(batches))
    highest = -1.0
    for _ in range(given.epochs):
        model.train()
        for batch in batches:
            optimizer.zero_grad()
            method(model, batch).total.backward()
            optimizer.step()
            schedule.step()
        if (accuracy := evaluate(model, test).accuracy) > highest:
            highest = accuracy
            torch.save(model.state_dict(), best)
    model.load_state_dict(torch.load(best, weights_only=True))
    return highest


if given.weights:  # a state dict, by itself or under a key, as checkpoints have it
    load_weights(network, given.weights)
floating = fit(allow_float(network), spequant.Retrain(), 0.01 if given.weights else 0.1, given.out / "float.pt")
model = spequant.prepare(network, weight=LSQ(3), act=LSQ(3))
spequant.calibrate(model, batches, samples=min(128, len(train) // 16 * 16))
low_bit = fit(model, spequant.SPEQ(), 0.02, given.out / "low-bit.pt")
print(f"float {floating:.1f} %, W3A3 {low_bit:.1f} % of {len(val)} photos")
file = given.out / "model.onnx"
spequant.quantize_biases(model.eval(), test[0][0][:1])  # integer arithmetic rounds biases, too
print(spequant.export(model, file, test, classes=train.classes).parity)
# From here on nothing of spequant, or of torch: what a program that ships the file does.
session = onnxruntime.InferenceSession(file)
images, labels = (np.concatenate([np.asarray(batch[i]) for batch in test]) for i in (0, 1))
answers = session.run(None, {session.get_inputs()[0].name: images})[0].argmax(1)
print(f"onnxruntime: {100 * (answers == labels).mean():.1f} %")
