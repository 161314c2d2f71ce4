"""Checkpoints: a folder each, tensors as safetensors and everything else as JSON; no pickle is written or read.

    checkpoints/step-00000120/tensors.safetensors   the tensors of a `Snapshot`
    checkpoints/step-00000120/state.json            format, digest of the rest, its numbers, the caller's facts, and
                                                    kind and digest of each tensor

Written to a temporary folder, forced to the disk, renamed; the last two are kept.
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

FORMAT = 1
KEPT = 2
STATE, TENSORS = "state.json", "tensors.safetensors"
REMEDY = "remove this folder to go on from the checkpoint before it, if there is one"


def checkpoints(folder: Path) -> list[Path]:
    """The complete ones below `folder`, oldest first."""
    return sorted(p for p in folder.glob("step-*") if p.is_dir())


def write(folder: Path, snapshot: Snapshot, facts: dict[str, Any]) -> Path:
    """Save `snapshot` and the caller's `facts` (JSON) below `folder`; its path. Older ones than the last two go.

    OSError: it could not be written; nothing half-written stays and the earlier ones are as they were.
    """
    path = folder / f"step-{snapshot.numbers['step']:08d}"
    tensors = {k: v.detach().cpu().contiguous() for k, v in snapshot.tensors.items()}
    content = {
        "numbers": snapshot.numbers,
        "facts": facts,
        "tensors": {k: {"kind": _kind(v), "digest": digest(v)} for k, v in tensors.items()},
    }
    try:
        with placed_folder(path) as temporary:
            save_file(tensors, temporary / TENSORS)
            content["size"] = (temporary / TENSORS).stat().st_size
            text = json.dumps({"format": FORMAT, "digest": _digest(_canonical(content)), "content": content})
            (temporary / STATE).write_text(text)
    except (OSError, SafetensorError) as error:
        before = checkpoints(folder)
        last = f"the last good one is {before[-1]}" if before else "there is none before it"
        raise OSError(f"checkpoint {path} could not be written ({error}); {last}") from error
    for old in checkpoints(folder)[:-KEPT]:
        remove(old)
    return path


def clean(folder: Path) -> None:
    """Remove what a killed process left half-written or half-removed."""
    for left in folder.glob(f"{TEMPORARY}*"):
        remove(left)


def read(path: Path, device: torch.device | str = "cpu") -> tuple[Snapshot, dict[str, Any]]:
    """(snapshot, facts) of the checkpoint `path`, every byte checked.

    ValueError names the file, tensor or field that is damaged, found and expected; a newer format is refused.
    """
    content = _content(path / STATE)
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
        found = {"kind": _kind(tensors[name]), "digest": digest(tensors[name])}
        for field in ("kind", "digest"):
            if found[field] != expected[field]:
                raise ValueError(
                    f"{file}: tensor {name} is damaged: {field} {found[field]}, expected {expected[field]}; {REMEDY}"
                )
    more = set(tensors) - set(content["tensors"])
    if more:
        raise ValueError(f"{file} holds the tensor {min(more)}; expected no such tensor; {REMEDY}")
    return Snapshot({k: v.to(device) for k, v in tensors.items()}, content["numbers"]), content["facts"]


def _content(file: Path) -> dict[str, Any]:
    """What state.json says, its own digest checked."""
    if not file.is_file():
        raise ValueError(f"{file} does not exist; expected the state of a checkpoint; {REMEDY}")
    try:
        outer = json.loads(file.read_text())
        version, expected, content = outer["format"], outer["digest"], outer["content"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file} is damaged: no JSON of a checkpoint ({error!r}); {REMEDY}") from error
    if version != FORMAT:
        raise ValueError(
            f"{file}: format is {version!r}; this version reads {FORMAT}: install the version of spequant that wrote it"
        )
    found = _digest(_canonical(content))
    if found != expected:
        raise ValueError(f"{file} is damaged: digest {found}, expected {expected}; {REMEDY}")
    return content


def digest(x: Tensor) -> str:
    """BLAKE2b, 128 bits, of the bytes of a contiguous CPU tensor."""
    return _digest(x.reshape(-1).view(torch.uint8).numpy())


def _digest(data: Any) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _canonical(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _kind(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} {list(x.shape)}"
