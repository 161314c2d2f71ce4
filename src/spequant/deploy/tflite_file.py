"""Files of --to tflite: sealed, and what they say of themselves to this project and to LiteRT's tools.

Metadata of the model: "spequant", JSON with

    format         of what follows
    kind           name of the format
    inputs         shape of the network's input by name, as torch has it, null: any
    outputs        names of the network's outputs
    preprocessing  [mean, std] where the input is uint8 images, or null
    act_bits       widths of its activations, in ascending order
    layers         what each costs (`cost.LayerCost`)
    unequal        {operation: {engine: sums to which it gives another code than the twin}}, where there are any
    about          what the writer said of the network

and "TFLITE_METADATA" (`litert_metadata.py`). Names of classes are a text in an archive behind the model.
"""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from spequant.deploy.classes import CLASS_NAMES
from spequant.deploy.litert_metadata import LABELS_FILE, METADATA_NAME, litert_metadata
from spequant.deploy.loaded import Loaded
from spequant.deploy.seal import OPEN, check_seal, sealed
from spequant.deploy.tflite_nodes import schema
from spequant.files import placed

FORMAT, KEY, SEAL = 1, "spequant", "spequant.seal"
NORMALISATION = "normalisation"
"""Entry of `about` that LiteRT's tools are told, as they are `CLASS_NAMES`: (mean, std) of images scaled to [0, 1], by
which the inputs are to be normalised."""
LARGEST = 2**31 - 2**20
"""Bytes of a file: flatbuffers count in 31 bits."""


def metadata(head: Mapping[str, Any], about: Mapping[str, Any] | None, shape: Sequence[int]) -> dict[str, bytes]:
    """Of a model; `write_tflite` closes the seal. shape: of the network's input."""
    about = dict(about or {})
    inputs = {"input": [None, *shape[1:]]}
    text = json.dumps({"format": FORMAT, "inputs": inputs, **head, "about": about}, separators=(",", ":"))
    normalisation: Any = ([0.0], [1.0])  # the graph does it
    if head["preprocessing"] is None:
        ranges = about.get(NORMALISATION)
        normalisation = None if ranges is None else tuple([255.0 * v for v in values] for values in ranges)
    ends = litert_metadata(shape, head["outputs"], normalisation, bool(about.get(CLASS_NAMES)))
    return {KEY: text.encode(), SEAL: OPEN.encode(), METADATA_NAME: ends}


def with_labels(model: bytes, about: Mapping[str, Any] | None) -> bytes:
    """`model`, and behind it an archive with the names of the classes, where `about` has them."""
    names = (about or {}).get(CLASS_NAMES)
    if not names:
        return model
    whole = io.BytesIO(model)
    with zipfile.ZipFile(whole, "a") as archive:
        archive.writestr(zipfile.ZipInfo(LABELS_FILE), "\n".join(names))
    return whole.getvalue()


def write_tflite(data: bytes, path: str | Path) -> None:
    """Write what `tflite_graph` made to `path`, whole or not at all. OSError. ValueError: too large for one file."""
    if len(data) > LARGEST:
        raise ValueError(f"the graph takes {len(data):,} bytes; a .tflite file holds at most {LARGEST:,}")
    with placed(Path(path)) as temporary:
        temporary.write_bytes(sealed(data))


def read_head(path: Path) -> dict[str, Any]:
    """What a file says of itself. FileNotFoundError. ValueError: changed, damaged, of a newer format, or not ours."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; expected a .tflite file")
    data = path.read_bytes()
    check_seal(path, data)
    try:
        head = json.loads(_entry(data, KEY))
        version, _ = head["format"], head["about"]
    except Exception as error:  # flatbuffers raise what reading past an end does
        raise ValueError(f"{path} is no .tflite file of spequant ({error!r}); export it anew") from error
    if version != FORMAT:
        raise ValueError(
            f"{path}: format is {version!r}; this version reads {FORMAT}: install the version that wrote it"
        )
    return head


def read_tflite(path: Path, name: str, engines: tuple[str, ...]) -> Loaded:
    """A file of the format `name`, opened. Errors as `read_head`'s."""
    head = read_head(path)
    values = head["preprocessing"]
    return Loaded(
        path,
        name,
        engines,
        about=head["about"],
        inputs={end: tuple(shape) for end, shape in head["inputs"].items()},
        outputs=tuple(head["outputs"]),
        act_bits=tuple(head["act_bits"]),
        preprocessing=None if values is None else (values[0], values[1]),
    )


def _entry(data: bytes, name: str) -> bytes:
    """The metadata of that name."""
    model = schema().Model.GetRootAs(data)
    for i in range(model.MetadataLength()):
        entry = model.Metadata(i)
        if entry.Name() == name.encode():
            return model.Buffers(entry.Buffer()).DataAsNumpy().tobytes()
    raise ValueError(f"it holds no {name!r}")
