"""What `bench train` trains: a network, and a batch of random numbers in the shape of its data."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn

from spequant import models
from spequant.app.runs.images import channels_last
from spequant.methods.tasks import Classification
from spequant.models.named import BUILDERS

BERT = "bert6"
NETWORKS = (*BUILDERS, BERT)
CLASSES = 10
LENGTH = 128  # tokens


@dataclass(frozen=True)
class Subject:
    """network: float, in train mode, on its device; batch: (inputs, labels), or both by name; residual: bits of
    addends, None where the network cannot be traced."""

    network: nn.Module
    batch: Any
    residual: int | None = 8

    def part(self, count: int) -> Any:
        """The inputs of the first `count` samples."""
        if isinstance(self.batch, Mapping):
            return {k: v[:count] for k, v in self.batch.items() if k != Classification.LABELS}
        return self.batch[0][:count]

    @property
    def tensors(self) -> list[Tensor]:
        """Of the batch."""
        return list(self.batch.values() if isinstance(self.batch, Mapping) else self.batch)


def make_subject(name: str, batch: int, image: int, device: torch.device) -> Subject:
    """`name`: a network of the recipes, on `batch` random images of `image` x `image` pixels; or "bert6": six layers
    of BERT-base with a classifier, on sequences of 128 tokens. ValueError: another name, or images it does not take."""
    if name not in NETWORKS:
        raise ValueError(f"network is {name!r}; expected one of {', '.join(NETWORKS)}")
    torch.manual_seed(0)
    labels = torch.randint(CLASSES, (batch,), device=device)
    if name == BERT:
        ids = torch.randint(1000, (batch, LENGTH), device=device)
        return Subject(_bert().to(device).train(), {"input_ids": ids, "labels": labels}, residual=None)
    images = torch.randn(batch, 3, image, image, device=device).to(memory_format=torch.channels_last)
    network = channels_last(getattr(models, name)(classes=CLASSES), device)
    try:
        with torch.no_grad():
            network.eval()(images[:2])
    except RuntimeError as error:
        raise ValueError(f"image is {image}: {name} does not run on it ({error})") from error
    return Subject(network.train(), (images, labels))


def _bert() -> nn.Module:
    try:
        transformers = import_module("transformers")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"network {BERT!r} needs {error.name}, which is not installed: pip install 'spequant[bench]'"
        ) from error
    config = transformers.BertConfig(
        num_hidden_layers=6, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return transformers.BertForSequenceClassification(config)
