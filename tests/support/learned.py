"""Networks that have learned something from real images: a few hundred steps on ten classes of Tiny ImageNet."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BATCH = 64


def images_of(folder: Path) -> tuple[Tensor, Tensor]:
    """(images (samples, 3, 64, 64), normalised; labels) of the folders of classes in `folder`, one class after the
    other in turn."""
    from PIL import Image

    classes = [sorted(one.rglob("*.JPEG")) for one in sorted(folder.iterdir()) if one.is_dir()]
    pixels = [np.asarray(Image.open(file).convert("RGB")) for row in zip(*classes, strict=True) for file in row]
    x = torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float()
    return (x / 255 - 0.45) / 0.225, torch.arange(len(x)) % len(classes)


def learn(model: nn.Module, x: Tensor, y: Tensor, steps: int, rate: float) -> None:
    """Train `model` for `steps` of `BATCH` images, half of them mirrored; batches and rates follow from the numbers. A
    step whose gradient is not finite is left out."""
    draw = torch.Generator().manual_seed(steps)
    optimizer = torch.optim.AdamW(model.parameters(), rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    model.train()
    for step in range(steps):
        chosen = torch.randint(len(x), (BATCH,), generator=draw)
        images = x[chosen].flip(3) if step % 2 else x[chosen]
        loss = F.cross_entropy(model(images), y[chosen], label_smoothing=0.1)
        optimizer.zero_grad()
        loss.backward()
        if all(p.grad is None or p.grad.isfinite().all() for p in model.parameters()):
            optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def answers(run: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Of all images, 100 at a time."""
    return torch.cat([torch.as_tensor(run(part)) for part in x.split(100)])


def right(logits: Tensor, y: Tensor) -> float:
    """Per cent."""
    return 100 * float((logits.argmax(1) == y).float().mean())
