"""The tensors of a prepared network under names that a float network knows, and its quantizers' tensors by number.

NAME                   a tensor of the float network (`unprepare`), under its own name and in its own shape
spequant.NUMBER.KEY    an entry of the state of a quantizer; the numbers are those of the description
"""

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from spequant.preparation.adapters import restore
from spequant.preparation.description import places
from spequant.preparation.placement import without_quantizers

QUANTIZERS = r"(?:^|\.)spequant\.(\d+)\.(\w+)$"
"""Pattern of the names of quantizers' tensors. Loaders may put the name of a base model in front."""


def stored_state(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the float network of a prepared `model`, which has the tensors of `model` itself, and what to store.

    Raises:
        ValueError: `model` is not prepared.
        RuntimeError: `model` is inside a precision context.
    """
    network = without_quantizers(model, share=True)
    restore(network)
    state = dict(network.state_dict())
    numbers: dict[int, int] = {}
    for _, quantizer in places(model):
        if quantizer is not None and id(quantizer) not in numbers:
            number = numbers[id(quantizer)] = len(numbers)
            state |= {f"spequant.{number}.{key}": tensor for key, tensor in quantizer.state_dict().items()}
    return network, state


def load_quantizers(model: nn.Module, slots: Mapping[str, int | None], tensors: Mapping[str, Tensor]) -> None:
    """Give the quantizers of `model` their states.

    Args:
        model: What `prepare_as` made.
        slots: Those of the description.
        tensors: What `stored_state` returned; other names than those of quantizers are passed over.

    Raises:
        ValueError: A tensor is missing, or one too many, or of another quantizer.
    """
    states: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        if match := re.search(QUANTIZERS, name):
            states.setdefault(int(match[1]), {})[match[2]] = tensor
    loaded: set[int] = set()
    for place, number in slots.items():
        if number is None or number in loaded:
            continue
        loaded.add(number)
        try:
            model.get_submodule(place).load_state_dict(states.get(number, {}))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(
                f"the tensors of {place} (spequant.{number}) do not fit: {reason}; take the whole file that was saved"
            ) from error
