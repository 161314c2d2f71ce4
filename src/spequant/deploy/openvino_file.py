"""OpenVINO's own files, .xml with .bin beside it: written together, sealed together."""

import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from spequant.deploy.seal import OPEN, check_seal, sealed
from spequant.extras import needs
from spequant.files import placed_together


def write_openvino(
    model: Any, path: str | Path, about: Mapping[str, Any], verify: Callable[[Path], None] = lambda path: None
) -> None:
    """Convert what `integer_graph` made and write it to `path`, which ends in .xml, and its .bin.

    verify: called with the written .xml before it takes its place; after an exception nothing of it is left.

    ValueError: another ending. OSError: as `spequant.files.placed`; nor may one of the two be a pipe or a device.
    """
    path = Path(path)
    if path.suffix.lower() != ".xml":
        raise ValueError(f"path is {str(path)!r}; expected one that ends in .xml: OpenVINO writes .xml and .bin")
    with placed_together(path, path.with_suffix(".bin")) as (xml, bin):  # the seal tells an .xml from another .bin
        openvino, plain = needs("openvino", "deploy"), type(model)()
        plain.CopyFrom(model)
        plain.ClearField("metadata_props")  # OpenVINO would keep them, the other seal too
        converted = openvino.Core().read_model(plain.SerializeToString())
        converted.set_rt_info(json.dumps(dict(about)), ["spequant", "about"])
        converted.set_rt_info(OPEN, ["spequant", "seal"])
        with tempfile.TemporaryDirectory(dir=xml.parent) as folder:
            made = Path(folder) / f"{path.stem}.xml"  # OpenVINO asks for small letters
            weights = made.with_suffix(".bin")
            openvino.save_model(converted, made, compress_to_fp16=False)
            made.write_bytes(sealed(made.read_bytes(), weights.read_bytes()))
            verify(made)
            shutil.move(weights, bin)
            shutil.move(made, xml)


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
