"""Image files of one's own: which are meant, and that they are read as a folder's test set is."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from spequant.data import Configuration, list_images, load_folder, picture_reader
from support.image_folders import fill, needs_timm, picture

Image = pytest.importorskip("PIL.Image")
pytestmark = needs_timm


def test_files_folders_and_patterns(tmp_path, monkeypatch):
    monkeypatch.chdir(fill(tmp_path, classes=("ant", "bee"), train=2, test=2))
    (tmp_path / "train/ant/notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    picture(np.random.default_rng(0)).save("train/ant/a[1].png")
    named = ["val/bee/01.jpg", "val", "train/ant/a[1].png", "val/*/0?.png", "train/**/*.jpg"]
    listing = list_images([*named, "nowhere.png", "*.bmp", "empty"])
    names = [str(path) for path in listing.files]
    assert names[:4] == ["val/bee/01.jpg", "val/ant/00.png", "val/ant/01.jpg", "val/bee/00.png"]
    assert names[4:] == ["train/ant/a[1].png", "train/ant/01.jpg", "train/bee/01.jpg"]
    assert listing.faults.keys() == {"nowhere.png", "*.bmp", "empty"}
    assert "train/ant/notes.txt" not in map(str, list_images(["train"]).files)


def test_every_mode_is_read_as_a_folders_test_set_is(tmp_path):
    """Grey of 8 and 16 bits, palette with and without transparency, RGBA, CMYK, a photo that was turned in its EXIF."""
    fill(tmp_path, classes=("ant",), train=1, test=0)
    folder, noise = tmp_path / "val/ant", picture(np.random.default_rng(1), 24)
    wide = picture(np.random.default_rng(2)).resize((40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    wide.save(folder / "turned.jpg", exif=exif)
    for mode in ("L", "P", "RGBA", "LA", "1"):
        noise.convert(mode).save(folder / f"{mode}.png")
    noise.convert("P").save(folder / "clear.png", transparency=3)
    noise.convert("CMYK").save(folder / "cmyk.jpg")
    deep = np.random.default_rng(3).integers(0, 2**16, (24, 24)).astype(np.uint16)
    Image.fromarray(deep).save(folder / "deep.png")
    about = replace(Configuration(), size=16)
    _, test = load_folder(tmp_path, about)
    read = picture_reader(about)
    for i in range(len(test)):
        assert torch.equal(read(test.images.name(i)), test.images[i : i + 1][0]), test.images.name(i)
    grey = picture_reader(Configuration((0.5,), (0.5,), crop_pct=1.0, size=24))(folder / "L.png")
    assert torch.equal(grey, torch.from_numpy(np.array(noise.convert("L")))[None])


def test_what_cannot_be_read_is_named(tmp_path):
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(ValueError, match=r"a\.png is no image"):
        picture_reader(Configuration())(tmp_path / "a.png")
    with pytest.raises(ValueError, match="4 channels"):
        picture_reader(Configuration((0.5,) * 4, (0.5,) * 4))
