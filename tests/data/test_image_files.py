"""Images in files: decoding, crops, order, augmentation, workers, images that cannot be read."""

import random
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

from spequant.data import (
    Augment,
    Crop,
    ImageFiles,
    RandomCrop,
    data_configuration,
    eval_batches,
    load_folder,
    train_batches,
)
from spequant.data.image_files import open_image, rgb
from support.image_folders import Listed, fill, needs_timm, order_of

Image = pytest.importorskip("PIL.Image")

# From Python 3.12 on, forking a worker warns, because torch has threads.
threads = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
pytestmark = [needs_timm, threads]

ABOUT = replace(data_configuration(""), size=16)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """Thirty training and twelve test images of three classes."""
    return load_folder(fill(tmp_path_factory.mktemp("images")), ABOUT)


def with_workers(data, workers):
    return replace(data, images=ImageFiles(data.images.source, data.images.crop, workers=workers).part(order_of(data)))


def same(first, second):
    return all(torch.equal(a, b) for x, y in zip(first, second, strict=True) for a, b in zip(x, y, strict=True))


def test_images_in_files_are_indexed_like_a_tensor(pair):
    train, test = pair
    assert (len(train), len(test), train.classes) == (30, 12, 3)
    images = test.images
    assert images.shape == (12, 3, 16, 16) and images.dim() == 4 and images.dtype == torch.uint8
    pixels = images[:]
    assert pixels.shape == images.shape and pixels.dtype == torch.uint8 and images.device == pixels.device
    assert torch.equal(images[torch.tensor([5, 2])], pixels[[5, 2]]) and images[3:3].shape == (0, 3, 16, 16)
    part = test.part(torch.tensor([4, 7, 1]))
    assert part.images.source is images.source and torch.equal(part.images[1:], pixels[[7, 1]])
    assert torch.equal(part.part(slice(1, 2)).images[:], pixels[[7]]) and torch.equal(
        part.labels, test.labels[[4, 7, 1]]
    )
    assert images.to("meta")[:1].device.type == "meta" and images.device.type == "cpu"
    assert torch.equal(torch.cat([x for x, _ in eval_batches(test, 5)]), test.normalise(pixels))
    shared = [torch.cat([x for x, _ in eval_batches(test, 2, turn=turn, turns=2)]) for turn in (0, 1)]
    assert torch.equal(shared[1], test.normalise(pixels[[2, 3, 6, 7, 10, 11]])) and len(shared[0]) == 6


def test_evaluation_scales_the_shorter_side_and_takes_the_middle(pair):
    _, test = pair
    for position in range(len(test)):
        with Image.open(test.images.name(position)) as image:
            width, height = image.size
            ratio = int(16 / 0.875) / min(width, height)
            wide, high = (int(side * ratio) if side != min(width, height) else 18 for side in (width, height))
            scaled = np.array(image.convert("RGB").resize((wide, high), Image.Resampling.BILINEAR))
        top, left = round((high - 16) / 2), round((wide - 16) / 2)
        expected = scaled[top : top + 16, left : left + 16].transpose(2, 0, 1)
        assert np.array_equal(test.images[position : position + 1][0].numpy(), expected), (width, height)


@pytest.mark.parametrize("augment", [RandomCrop(), RandomCrop(0.5, 0.4), RandomCrop(auto_augment="rand-m9-mstd0.5")])
def test_batches_depend_only_on_seed_epoch_and_position(pair, augment):
    train, _ = pair
    torch.manual_seed(1)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    batches = list(train_batches(train, 4, seed=3, epoch=2, augment=augment))
    assert before[:2] == (random.getstate(), np.random.get_state()[1].tolist())
    assert torch.equal(before[2], torch.get_rng_state())
    assert len(batches) == 7 and batches[0][0].shape == (4, 3, 16, 16) and batches[0][1].dtype == torch.int64
    assert batches[0][0].is_contiguous(memory_format=torch.channels_last) and batches[0][0].dtype == torch.float32
    random.seed(5)
    torch.manual_seed(7)
    assert same(batches[5:], train_batches(train, 4, seed=3, epoch=2, augment=augment, start=5))
    two = with_workers(train, 2)
    with warnings.catch_warnings():  # fewer CPUs than workers
        warnings.simplefilter("ignore", UserWarning)
        torch.manual_seed(9)
        state = torch.get_rng_state()
        assert same(batches, train_batches(two, 4, seed=3, epoch=2, augment=augment))
        assert torch.equal(state, torch.get_rng_state())
        assert same(batches[3:], train_batches(two, 4, seed=3, epoch=2, augment=augment, start=3))
    parts = [train_batches(train, 4, seed=3, epoch=2, augment=augment, part=slice(i, i + 2)) for i in (0, 2)]
    assert same(batches, [(torch.cat([a, c]), torch.cat([b, d])) for (a, b), (c, d) in zip(*parts, strict=True)])
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 1}):
        assert not torch.equal(batches[0][0], next(train_batches(train, 4, augment=augment, **other))[0])


def test_an_image_is_augmented_anew_in_each_epoch_and_not_at_all_without(pair):
    data = pair[0].part(slice(0, 1))
    draws = [next(train_batches(data, 1, seed=0, epoch=e, augment=RandomCrop()))[0] for e in range(3)]
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[1], draws[2])
    plain, labels = next(train_batches(data, 1, seed=0, epoch=0, augment=None))
    assert torch.equal(plain, data.normalise(data.images[:])) and labels == data.labels
    padded, _ = next(train_batches(data, 1, seed=0, epoch=0, augment=Augment()))
    memory = replace(data, images=data.images[:])
    assert torch.equal(padded, next(train_batches(memory, 1, seed=0, epoch=0, augment=Augment()))[0])
    with pytest.raises(ValueError, match="augment is a RandomCrop"):
        next(train_batches(memory, 1, seed=0, epoch=0, augment=RandomCrop()))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_when_it_is_decoded(tmp_path, workers):
    damaged = fill(tmp_path, train=4, ends=("jpg",)) / "train/bee/02.jpg"
    for content in (damaged.read_bytes()[:300], b"no image at all", b""):
        damaged.write_bytes(content)
        train, test = load_folder(tmp_path, ABOUT, workers=workers)
        with pytest.raises(ValueError, match=r"^.*train/bee/02\.jpg is no image .*data\.check_images"):
            list(train_batches(train, 4, seed=0, epoch=0, augment=RandomCrop()))
        with pytest.raises(ValueError, match=r"bee/02\.jpg"):
            train.images[:]
        assert len(list(eval_batches(test, 4))) == 3


def test_images_of_every_mode_become_rgb(tmp_path):
    gray = np.arange(256, dtype=np.uint8).reshape(16, 16)
    colours = np.stack([gray, gray.T, 255 - gray], -1)
    image = Image.fromarray(colours)
    cases = {
        "gray.png": (Image.fromarray(gray), np.stack([gray] * 3, -1)),
        "deep.png": (Image.fromarray(gray.astype(np.uint16) * 257), np.stack([gray] * 3, -1)),
        "alpha.png": (Image.fromarray(np.dstack([colours, gray])), colours),
        "cmyk.tiff": (image.convert("CMYK"), colours),
        "palette.png": (image.quantize(256), None),
        "bits.png": (Image.fromarray(gray).convert("1"), None),
    }
    for name, (saved, expected) in cases.items():
        saved.save(tmp_path / name)
        with Image.open(tmp_path / name) as opened:
            converted = rgb(opened)
        assert converted.mode == "RGB" and converted.size == (16, 16), name
        assert expected is None or np.array_equal(np.array(converted), expected), name
    transparent = image.quantize(4)
    transparent.save(tmp_path / "clear.png", transparency=b"\0\x80\xff\xff")
    with Image.open(tmp_path / "clear.png") as opened:
        assert np.array_equal(np.array(rgb(opened)), np.array(transparent.convert("RGB")))


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "tiff"])
def test_photos_are_turned_upright_as_their_exif_says(ending, tmp_path):
    """Stored as the camera held them; what is read is the upright picture, a file as an image in memory."""
    upright = Image.fromarray(np.kron(np.array([[0, 80, 160], [240, 40, 200]], np.uint8), np.ones((16, 16), np.uint8)))
    stored = {
        1: (),
        3: (3,),
        6: (2,),
        8: (4,),
        2: (0,),
        5: (5,),
    }  # {orientation: pillow's transposition that undoes it}
    for orientation, ways in stored.items():
        exif, image = Image.Exif(), upright.convert("RGB")
        for way in ways:
            image = image.transpose(Image.Transpose(way))
        exif[0x0112] = orientation
        path = tmp_path / f"{orientation}.{ending}"
        image.save(path, exif=exif, **({"quality": 100} if ending in ("jpg", "webp") else {}))
        opened = open_image(path)
        for each in (opened, opened, opened.convert("RGB")):
            pixels = np.array(rgb(each)).astype(int)
            assert pixels.shape == (32, 48, 3) and abs(pixels[..., 0] - np.array(upright)).mean() < 4, orientation


def test_damaged_exif_leaves_the_image_as_it_is(tmp_path):
    picture = Image.fromarray(np.zeros((8, 16, 3), np.uint8))
    picture.save(tmp_path / "a.png", exif=b"Exif\0\0II*\0\xff\xff")
    assert rgb(open_image(tmp_path / "a.png")).size == (16, 8)


def test_images_smaller_than_the_crop_are_enlarged_and_a_batch_is_no_larger_than_the_set(pair):
    train, _ = pair
    large = replace(train, images=ImageFiles(train.images.source, Crop(64, 1.0, "bicubic")).part(order_of(train)))
    images, _ = next(train_batches(large, 2, seed=0, epoch=0, augment=RandomCrop()))
    assert images.shape == large.images[:2].shape == (2, 3, 64, 64)
    with pytest.raises(ValueError, match="batch_size is 31; expected 1 to 30"):
        next(train_batches(large, 31, seed=0, epoch=0, augment=RandomCrop()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Crop(0), "size is 0"),
        (lambda: Crop(8, 1.5), r"crop_pct is 1\.5"),
        (lambda: Crop(8, 1, "cubic"), "interpolation is 'cubic'; expected one of nearest"),
        (lambda: RandomCrop(0), "crop_scale is 0"),
        (lambda: RandomCrop(color_jitter=-1), "color_jitter is -1"),
        (lambda: RandomCrop(auto_augment="rnd").transform(Crop(8)), "auto_augment is 'rnd'.*rand-m9"),
        (lambda: ImageFiles([], Crop(8), workers=-1), "workers is -1"),
        (lambda: ImageFiles(Listed([0, 3], "targets"), Crop(8))[1:], r"image 1 of Listed .*data\.check_images"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_squash_mode_scales_the_whole_image(pair):
    config = data_configuration("timm/convnext_base.clip_laion2b_augreg_ft_in12k_in1k_384")
    assert config.crop_mode == "squash"
    image = Image.fromarray(np.tile(np.arange(64, dtype=np.uint8)[:, None, None], (1, 8, 3)))
    pixels = np.asarray(Crop(16, 1.0, mode="squash").transform()(image))
    assert pixels[0].min() < 8 and pixels[0].max() > 56  # a center crop would contain 8 of the 64 rows
