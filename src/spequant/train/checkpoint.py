"""Checkpoints: one folder each, tensors as safetensors and everything else as JSON; no pickle is written or read.

    checkpoints/step-00000120/tensors.safetensors   the tensors of a `Snapshot`
    checkpoints/step-00000120/state.json            format, digest of the content, and as content the numbers of the
                                                    snapshot, the caller's facts, type and digest of each tensor

A checkpoint is written to a temporary folder, flushed to the disk and then renamed. The last two stay.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from spequant.files import TEMPORARY, placed_folder, remove
from spequant.train.state import Snapshot

CHECKPOINT_FORMAT = 1
MAX_CHECKPOINTS = 2
STATE_FILE, TENSORS = "state.json", "tensors.safetensors"
REMEDY = "remove this folder to go on from the checkpoint before it, if there is one"


def checkpoints(folder: Path) -> list[Path]:
    """Return the complete checkpoints in `folder`, the oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def write(folder: Path, snapshot: Snapshot, facts: dict[str, Any]) -> Path:
    """Save `snapshot` and the caller's `facts` as a checkpoint, and remove all others but the last two.

    Args:
        folder: The folder of all checkpoints of a run.
        snapshot: What `TrainingState.capture` returned.
        facts: Anything that JSON can hold; `read` returns it.

    Returns:
        The folder of this checkpoint.

    Raises:
        OSError: It could not be written. Then nothing half-written stays, and earlier checkpoints are unchanged.
    """
    path = folder / f"step-{snapshot.numbers['step']:08d}"
    tensors = {k: v.detach().cpu().contiguous() for k, v in snapshot.tensors.items()}
    content = {
        "numbers": snapshot.numbers,
        "facts": facts,
        "tensors": {k: {"kind": _kind(v), "digest": tensor_digest(v)} for k, v in tensors.items()},
    }
    try:
        with placed_folder(path) as temporary:
            save_file(tensors, temporary / TENSORS)
            content["size"] = (temporary / TENSORS).stat().st_size
            text = json.dumps({"format": CHECKPOINT_FORMAT, "digest": _digest(_canonical(content)), "content": content})
            (temporary / STATE_FILE).write_text(text)
    except (OSError, SafetensorError) as error:
        earlier = checkpoints(folder)
        last = f"the last good one is {earlier[-1]}" if earlier else "there is none before it"
        raise OSError(f"checkpoint {path} could not be written ({error}); {last}") from error
    for old in checkpoints(folder)[:-MAX_CHECKPOINTS]:
        if old != path:  # a folder with checkpoints of later steps, e.g. of a run before, keeps this one as well
            remove(old)
    return path


def clean(folder: Path) -> None:
    """Remove files and folders that a killed process left half-written or half-removed in `folder`."""
    for path in folder.glob(f"{TEMPORARY}*"):
        remove(path)


def read(path: Path, device: torch.device | str = "cpu") -> tuple[Snapshot, dict[str, Any]]:
    """Read a checkpoint and check every byte of it.

    Args:
        path: The folder of the checkpoint.
        device: Where its tensors go.

    Returns:
        (snapshot, the caller's facts).

    Raises:
        ValueError: Something is damaged or missing, or the format is another one. The message names the file, tensor or
            field, its value and the expected one.
    """
    content = _content(path / STATE_FILE)
    file = path / TENSORS
    size = file.stat().st_size if file.is_file() else 0
    if size != content["size"]:
        raise ValueError(f"{file} has {size} bytes; expected {content['size']}: it was cut short or changed; {REMEDY}")
    try:
        tensors = load_file(file, device="cpu")
    except Exception as error:
        raise ValueError(f"{file} is damaged in its header ({error}); {REMEDY}") from error
    for name, expected in content["tensors"].items():
        if name not in tensors:
            raise ValueError(f"{file} lacks the tensor {name}; expected {expected['kind']}; {REMEDY}")
        actual = {"kind": _kind(tensors[name]), "digest": tensor_digest(tensors[name])}
        for field in ("kind", "digest"):
            if actual[field] != expected[field]:
                raise ValueError(
                    f"{file}: tensor {name} is damaged: {field} {actual[field]}, expected {expected[field]}; {REMEDY}"
                )
    unexpected = set(tensors) - set(content["tensors"])
    if unexpected:
        raise ValueError(f"{file} holds the tensor {min(unexpected)}; expected no such tensor; {REMEDY}")
    return Snapshot({k: v.to(device) for k, v in tensors.items()}, content["numbers"]), content["facts"]


def _content(file: Path) -> dict[str, Any]:
    """Return the content of state.json after checking its digest."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected the state of a checkpoint; {REMEDY}")
    try:
        outer = json.loads(file.read_text())
        version, expected, content = outer["format"], outer["digest"], outer["content"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: no JSON of a checkpoint ({error!r}); {REMEDY}") from error
    if version != CHECKPOINT_FORMAT:
        raise ValueError(
            f"{file}: format is {version!r}; this version reads {CHECKPOINT_FORMAT}: install the version of spequant "
            "that wrote it"
        )
    actual = _digest(_canonical(content))
    if actual != expected:
        raise ValueError(f"{file} is damaged: digest {actual}, expected {expected}; {REMEDY}")
    return content


def tensor_digest(x: Tensor) -> str:
    """Return the 128-bit BLAKE2b digest of the bytes of `x`, a contiguous CPU tensor, in hexadecimal."""
    return _digest(x.reshape(-1).view(torch.uint8).numpy())


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _kind(x: Tensor) -> str:
    """Return the type and shape of `x` as state.json has them."""
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
