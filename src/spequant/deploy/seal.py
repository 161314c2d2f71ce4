"""A digest inside the file that it is of: what was changed since, or cut off, is not read.

The file holds `SEAL_PREFIX` and 32 hexadecimal digits somewhere; the digest is of all its bytes with those digits zero.
"""

import hashlib
import re
from pathlib import Path

SEAL_PREFIX = "spequant-seal-"
OPEN = SEAL_PREFIX + "0" * 32
"""Put this into the file; `sealed` replaces it."""


def sealed(data: bytes, *others: bytes) -> bytes:
    """`data`, which holds `OPEN` once, with its digest; `others`: files that belong to it."""
    if data.count(OPEN.encode()) != 1:
        raise ValueError(f"data holds {data.count(OPEN.encode())} open seals; expected one")
    return data.replace(OPEN.encode(), (SEAL_PREFIX + _digest(data, *others)).encode())


def check_seal(path: Path, data: bytes, *others: bytes) -> None:
    """ValueError: `data` is not what `sealed` gave, with the same `others`."""
    seals = re.findall(SEAL_PREFIX.encode() + b"([0-9a-f]{32})", data)
    if len(seals) != 1:
        raise ValueError(f"{path} holds no seal of spequant: it was not written by `spequant export`, or is damaged")
    opened = data.replace(SEAL_PREFIX.encode() + seals[0], OPEN.encode())
    if _digest(opened, *others) != seals[0].decode():
        raise ValueError(f"{path} was changed since its export, or is damaged: its digest differs; export or copy anew")


def _digest(*parts: bytes) -> str:
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()
