"""A digest inside the file that it is of."""

from pathlib import Path

import pytest

from spequant.deploy.seal import OPEN, check_seal, sealed

PATH = Path("net.onnx")


def test_what_was_sealed_is_known_again_with_what_belongs_to_it():
    data = sealed(b"before " + OPEN.encode() + b" after", b"weights")
    assert data.startswith(b"before ") and data.endswith(b" after") and OPEN.encode() not in data
    check_seal(PATH, data, b"weights")
    for others in ((), (b"weight",), (b"weights", b"")):
        with pytest.raises(ValueError, match=r"net\.onnx was changed"):
            check_seal(PATH, data, *others)


@pytest.mark.parametrize("seals", [0, 2])
def test_one_open_seal_is_expected(seals):
    with pytest.raises(ValueError, match=f"data holds {seals} open seals"):
        sealed(b"data " + seals * OPEN.encode())
    with pytest.raises(ValueError, match=r"net\.onnx holds no seal"):
        check_seal(PATH, b"data " + seals * OPEN.encode())
