"""What `calibrate` takes, against one pass of the float network over the same samples.

    python benchmarks/calibration.py                                      # ResNet-18 at 224 x 224, 1,024 images
    python benchmarks/calibration.py --network bert-base --samples 256    # windows of 128 tokens
    python benchmarks/calibration.py --network resnet18 --size 64         # smaller images

Each measurement has a process of its own. Seconds are of the processor, with one thread: on a shared machine they are
reliable, the time on the clock is not. Memory is the highest resident size after the network and the batches are there.
"""

import resource
import threading
import time
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.table import Table
from torch import nn

import spequant
from spequant.app.commands.screen import print_table
from spequant.quantizers import LSQ, LSQPlus

PAGE = resource.getpagesize()


@dataclass(frozen=True)
class Settings:
    """What is calibrated."""

    network: Literal["resnet18", "mobilenet_v2", "bert-base"] = "resnet18"
    samples: int = 1024
    batch: int = 32
    size: int = 224
    """of images, pixels on a side"""
    tokens: int = 128
    """of a window"""
    bits: int = 4


def main() -> None:
    """Print a row per measurement."""
    settings = tyro.cli(Settings)
    table = Table("", "processor seconds", "to one float pass", "peak memory, MiB")
    base = 0.0
    for name in ("float pass", "calibrate", "calibrate, no re-estimation"):
        ours, theirs = get_context("spawn").Pipe()
        process = get_context("spawn").Process(target=_measure, args=(theirs, name, settings))
        process.start()
        theirs.close()  # so that a process that dies is seen
        seconds, peak = ours.recv()
        process.join()
        base = base or seconds
        table.add_row(name, f"{seconds:.1f}", f"{seconds / base:.2f}", f"{peak / 2**20:.0f}")
    print_table(table)


def _measure(pipe: Connection, name: str, settings: Settings) -> None:
    """Send processor seconds and the growth of the resident memory in bytes."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    network, batches, options = _subject(settings)
    with torch.no_grad():
        _forward(network.eval(), batches[0])  # what a first call sets up
    model = network if name == "float pass" else spequant.prepare(network, **options)
    peak = _Peak()
    begun = time.process_time()
    if name == "float pass":
        with torch.no_grad():
            for batch in batches:
                _forward(model, batch)
    else:
        spequant.calibrate(model, batches, samples=settings.samples, reestimate=name == "calibrate")
    pipe.send((time.process_time() - begun, peak.stop()))


def _subject(settings: Settings) -> tuple[nn.Module, list[Any], dict[str, Any]]:
    count = settings.samples // settings.batch
    if settings.network == "bert-base":
        from transformers import BertConfig, BertModel

        shape = (settings.batch, settings.tokens)
        words = [
            {"input_ids": torch.randint(0, 30_000, shape), "attention_mask": torch.ones(shape)} for _ in range(count)
        ]
        options = {"act": LSQPlus(settings.bits), "per_channel": True, "products": 8, "residual": None}
        return BertModel(BertConfig()), words, {"weight": LSQ(settings.bits), **options}
    import torchvision

    shape = (settings.batch, 3, settings.size, settings.size)
    network = getattr(torchvision.models, settings.network)()
    return (
        network,
        [torch.randn(shape) for _ in range(count)],
        {"weight": LSQ(settings.bits), "act": LSQ(settings.bits)},
    )


def _forward(model: nn.Module, batch: Any) -> None:
    model(**batch) if isinstance(batch, dict) else model(batch)


class _Peak:
    """The highest resident size of this process, looked at 50 times a second, above what it was at first."""

    def __init__(self) -> None:
        self.first = self.highest = self._now()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()

    def _now(self) -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE

    def _watch(self) -> None:
        while not self.ended.wait(0.02):
            self.highest = max(self.highest, self._now())

    def stop(self) -> int:
        self.ended.set()
        self.thread.join()
        return self.highest - self.first


if __name__ == "__main__":
    main()
