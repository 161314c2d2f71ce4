"""Checkpoints of the Trainer, loaded into a prepared network that is there."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from spequant.names import some_of
from spequant.networks import versioned

WEIGHTS = "model.safetensors"


def load_checkpoint(model: nn.Module, folder: str | Path) -> None:
    """Load weights and ranges that a QATTrainer or `save_pretrained` saved; the model then needs no calibration.

    Args:
        model: The prepared network, with the same arguments of `prepare` as in the run that saved it.
        folder: A checkpoint folder of a QATTrainer, or one that `save_pretrained` of the prepared network wrote.

    Raises:
        ValueError: The file is missing, damaged or of another network, or `model` cannot store each tensor as saved.
    """
    file = Path(folder) / WEIGHTS
    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected a checkpoint folder that a QATTrainer saved")
    try:
        state = load_file(file)
        if not isinstance(model, PreTrainedModel) and any(name.startswith("spequant.") for name in state):
            raise ValueError(
                f"model is a {type(model).__name__}, but {file} is of a network of transformers; expected that network "
                "itself, prepared, without another around it"
            )
        if isinstance(model, PreTrainedModel) and state.keys() != model.state_dict().keys():
            state = _state_of_pretrained(model, file)
        model.load_state_dict(versioned(model, state))
    except SafetensorError as error:
        raise ValueError(f"{file} is damaged ({error}); take an earlier checkpoint") from error
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{file} is of another network than model ({reason}); prepare the float one as for the run that saved it"
        ) from error
    loaded = model.state_dict()
    differing = [name for name, saved in state.items() if not _equal(loaded[name], saved)]
    if differing:
        raise ValueError(
            f"{file}: model does not hold {differing[0]} as saved ({len(differing)} such tensors), because its layers "
            "share a quantizer or a weight that were separate in the run that saved it; prepare the float network as "
            "for that run"
        )


def _state_of_pretrained(model: PreTrainedModel, file: Path) -> dict[str, Tensor]:
    """Return the state of the network that `save_pretrained` wrote to `file`, under the names of `model`."""
    network: Any = type(model)
    try:
        saved, report = network.from_pretrained(file.parent, dtype="auto", output_loading_info=True)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    if report["missing_keys"]:  # transformers gives those random values
        raise ValueError(
            f"{file} is damaged or of another network than model (Missing key(s): "
            f"{some_of(sorted(report['missing_keys']))}); take an earlier checkpoint"
        )
    return saved.state_dict()


def _equal(loaded: Tensor, saved: Tensor) -> bool:
    return torch.allclose(loaded, saved.to(loaded.device, loaded.dtype), rtol=0, atol=0, equal_nan=True)
