"""OpenVINO's own files, .xml with .bin beside it: written together, sealed together."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spequant.export.seal import OPEN, check_seal, sealed
from spequant.extras import needs
from spequant.files import sync


def write_openvino(
    model: Any, path: str | Path, about: Mapping[str, Any], verify: Callable[[Path], None] = lambda path: None
) -> None:
    """Convert what `integer_graph` made and write it to `path`, which ends in .xml, and its .bin.

    verify: called with the written .xml before it takes its place; after an exception nothing of it is left.
    """
    path = Path(path)
    if path.suffix != ".xml":
        raise ValueError(f"path is {str(path)!r}; expected one that ends in .xml: OpenVINO writes .xml and .bin")
    openvino, plain = needs("openvino", "deploy"), type(model)()
    plain.CopyFrom(model)
    plain.ClearField("metadata_props")  # OpenVINO would keep them, the other seal too
    converted = openvino.Core().read_model(plain.SerializeToString())
    converted.set_rt_info(json.dumps(dict(about)), ["spequant", "about"])
    converted.set_rt_info(OPEN, ["spequant", "seal"])
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".tmp-") as folder:
        made = Path(folder) / path.name
        openvino.save_model(converted, made, compress_to_fp16=False)
        weights = made.with_suffix(".bin")
        made.write_bytes(sealed(made.read_bytes(), weights.read_bytes()))
        verify(made)
        for file in (weights, made):  # the seal tells an .xml from another .bin
            sync(file)
            os.replace(file, path.with_suffix(file.suffix))


def read_openvino(path: str | Path) -> dict[str, Any]:
    """What `write_openvino` was told. FileNotFoundError. ValueError: changed, damaged, or not ours."""
    path = Path(path)
    for file in (path, path.with_suffix(".bin")):
        if not file.is_file():
            raise FileNotFoundError(f"{file} does not exist; expected OpenVINO's .xml with its .bin beside it")
    check_seal(path, path.read_bytes(), path.with_suffix(".bin").read_bytes())
    model = needs("openvino", "deploy").Core().read_model(path)
    try:
        return json.loads(model.get_rt_info(["spequant", "about"]).astype(str))
    except (RuntimeError, ValueError) as error:
        raise ValueError(f"{path} does not say what it is of ({error}); export it anew") from error
