"""What `bench train` trains: a network, and a batch of random numbers in the shape of its data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from spequant import models
from spequant.app.runs.images import channels_last
from spequant.extras import needs
from spequant.methods.tasks import Classification
from spequant.models.named import BUILDERS

BERTS = {"bert6": 6, "bert12": 12}
"""{name: layers of BERT-base}"""
CLASSES = 10
TOKENS = 128
"""length of BERT's sequences"""


@dataclass(frozen=True)
class Subject:
    """A network with a batch.

    Args:
        network: float, in train mode, on its device.
        batch: (inputs, labels), or both by name.
        residual: bits of the addends of residual additions; None where the network cannot be traced.
    """

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
        """The tensors of the batch."""
        return list(self.batch.values() if isinstance(self.batch, Mapping) else self.batch)


def make_subject(name: str, batch: int, size: int, device: torch.device) -> Subject:
    """A network with random weights, and a random batch; the same ones at each call.

    Args:
        name: a network of the recipes, or of the user's own (package.module:Object or file.py:Object); or
            one of `BERTS`, layers of BERT-base with a classifier.
        batch: number of images, or of sequences of 128 tokens.
        size: side of the images, pixels.
        device: of both.

    Raises:
        ValueError: there is no such network, or it does not take these images.
        ModuleNotFoundError: one of `BERTS` without the package transformers.
    """
    torch.manual_seed(0)
    if name in BERTS:
        ids, labels = (torch.randint(high, size) for high, size in ((1000, (batch, TOKENS)), (CLASSES, (batch,))))
        bert = _bert(BERTS[name]).to(device).train()
        return Subject(bert, {"input_ids": ids.to(device), "labels": labels.to(device)}, None)
    check_name(name, (*BUILDERS, *BERTS))
    network = channels_last(models.make_network(name, classes=CLASSES, size=size), device)
    images = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    logits = checked_logits(network, name, images[:2])
    return Subject(network.train(), (images, torch.randint(logits.shape[1], (batch,), device=device)))


def check_name(name: str, networks: tuple[str, ...]) -> None:
    """ValueError: `name` is none of `networks`, and no reference to an object of the user's own."""
    if name not in networks and ":" not in name:
        raise ValueError(
            f"network is {name!r}; expected one of {', '.join(networks)}, or package.module:Object or file.py:Object"
        )


def checked_logits(network: nn.Module, name: str, images: Tensor) -> Tensor:
    """The logits, (images, classes), of a network, which is left in eval mode.

    Raises:
        ValueError: the network does not run on `images`, or returns something else.
    """
    try:
        with torch.no_grad():
            logits = network.eval()(images)
    except Exception as error:  # of whatever kind a network of the user's own raises
        raise ValueError(f"size is {images.shape[-1]}: {name} does not run on it ({error})") from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        kind = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"network is {name!r}, which returns {kind}; expected logits of shape (images, classes)")
    return logits


def _bert(layers: int) -> nn.Module:
    transformers = needs("transformers", "text")
    config = transformers.BertConfig(
        num_hidden_layers=layers, num_labels=CLASSES, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0
    )
    return transformers.BertForSequenceClassification(config)
