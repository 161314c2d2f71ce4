"""Soft labels in a file: codes against their literal twin, the very crops again, files that are refused."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reference import soft_labels as literal
from spequant.data import Augment, Crop, ImageSet, RandomCrop, SoftLabels, load_folder, make_soft_labels
from spequant.data.configuration import Configuration
from spequant.data.image_files import ImageFiles
from spequant.data.soft_labels import decoded, encoded
from support.image_folders import fill, needs_timm

STEP = 1 / 255


def image_set(count=40, classes=6):
    images = torch.randint(0, 256, (count, 3, 8, 8), dtype=torch.uint8)
    return ImageSet(images, torch.arange(count) % classes, (0.5,) * 3, (0.25,) * 3, classes)


def network(classes=6, side=8):
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, classes)).eval()


def shares(logits, temperature=1.0):
    return torch.softmax(logits.double() / temperature, -1)


def joined(batches):
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


@pytest.fixture
def made(tmp_path):
    """(images, teacher, file) of three slots."""
    data, teacher = image_set(), network()
    make_soft_labels(teacher, data, Augment(2), tmp_path / "labels", slots=3, top=4, temperature=2.0, seed=7)
    return data, teacher, tmp_path / "labels"


@pytest.mark.parametrize(("top", "temperature"), [(1, 1.0), (3, 4.0), (7, 1.0)])
def test_codes_are_those_of_the_literal_twin(top, temperature):
    logits = 4 * torch.randn(50, 8)
    classes, codes = encoded(logits, top, temperature)
    again = shares(decoded(classes, codes, 8, temperature), temperature)
    for row, *of_file, share in zip(logits.double(), classes, codes, again, strict=True):
        expected, numbers = literal.stored(row.tolist(), top, temperature)
        assert of_file[0].tolist() == expected and of_file[1].tolist() == numbers
        assert share.tolist() == pytest.approx(literal.read(expected, numbers, 8), abs=1e-6)


@pytest.mark.parametrize("spread", [0.1, 2.0, 20.0])
def test_all_classes_lose_what_rounding_of_roots_loses(spread):
    p = shares(spread * torch.randn(200, 10))
    read = decoded(*encoded(p.log().float(), 10, 1.0), 10, 1.0)
    assert read.isfinite().all()
    kl = (p * (p.clamp_min(1e-300).log() - read.double())).sum(-1)
    assert float(kl.mean()) < 10 * 2 * (STEP / 2) ** 2 and float(kl.max()) < 3 * 10 * 2 * (STEP / 2) ** 2


def test_a_slot_has_the_crops_that_the_teacher_saw(made):
    data, teacher, path = made
    labels = SoftLabels(path, data, Augment(2))
    for epoch in (1, 4):  # of one slot
        order = np.random.default_rng((3, epoch)).permutation(len(data))
        crops = data.normalise(literal.crops(data.images, 2, True, seed=7, slot=1))[order]
        images, classes, answers = joined(labels.batches(8, seed=3, epoch=epoch))
        assert torch.equal(images, crops) and torch.equal(classes, data.labels[order])
        full = teacher(crops)
        closest = decoded(*encoded(full, 4, 2.0), 6, 2.0)
        torch.testing.assert_close(answers, closest, rtol=0, atol=1e-5)
        torch.testing.assert_close(shares(answers, 2.0).amax(-1), shares(full, 2.0).amax(-1), rtol=0, atol=2 * STEP)


def test_crops_differ_from_slot_to_slot_and_not_with_the_order(made):
    data, _, path = made
    labels = SoftLabels(path, data, Augment(2))

    def in_order(seed, epoch):
        images = torch.cat([x for x, *_ in labels.batches(8, seed=seed, epoch=epoch)])
        return images[np.argsort(np.random.default_rng((seed, epoch)).permutation(len(data)))]

    assert torch.equal(in_order(0, 0), in_order(9, 3)) and not torch.equal(in_order(0, 0), in_order(0, 1))


def test_batches_resume_at_any_step_and_join_over_processes(made):
    data, _, path = made
    labels = SoftLabels(path, data, Augment(2))
    whole = list(labels.batches(8, seed=0, epoch=5))
    halves = [list(labels.batches(8, seed=0, epoch=5, start=2, part=part)) for part in (slice(0, 4), slice(4, 8))]
    assert len(whole) == 5
    for batch, *parts in zip(whole[2:], *halves, strict=True):
        assert all(torch.equal(x, torch.cat(of)) for x, *of in zip(batch, *parts, strict=True))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda data: data.part(slice(0, 39)), "images is 40, expected 39"),
        (lambda data: replace(data, mean=(0.4,) * 3), "mean is .*0.5.*0.4"),
        (lambda data: data.part(torch.arange(40).flip(0)), "content .*order"),
        (lambda data: replace(data, labels=data.labels.roll(1)), "content .*labels"),
        (lambda data: replace(data, images=data.images ^ 1), "content .*images"),
    ],
)
def test_other_images_are_refused_by_what_differs(change, named, made):
    data, _, path = made
    with pytest.raises(ValueError, match=named):
        SoftLabels(path, change(data), Augment(2))


def test_another_augmentation_is_refused(made):
    data, _, path = made
    for other in (Augment(3), Augment(2, flip=False), None):
        with pytest.raises(ValueError, match=f"augment is .*flip=True.*, expected {re.escape(str(other))}"):
            SoftLabels(path, data, other)


def test_crops_that_come_out_otherwise_are_refused(made, monkeypatch):
    data, _, path = made
    draw = Augment.draw
    monkeypatch.setattr(Augment, "draw", lambda self, batch, rng: draw(self, batch + 1, rng)[:, 1:])  # another numpy
    with pytest.raises(ValueError, match=r"crops .*pixels"):
        SoftLabels(path, data, Augment(2))


def test_a_damaged_slot_is_an_error_and_so_is_another_file(made, tmp_path):
    data, _, path = made
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    (tmp_path / "damaged").write_bytes(content)
    labels = SoftLabels(tmp_path / "damaged", data, Augment(2))
    with pytest.raises(ValueError, match="damaged is damaged: slot 2"):
        [list(labels.batches(8, seed=0, epoch=epoch)) for epoch in range(3)]
    (tmp_path / "other").write_bytes(b"other")
    with pytest.raises(ValueError, match="other holds no soft"):
        SoftLabels(tmp_path / "other", data, Augment(2))
    with pytest.raises(FileNotFoundError, match="absent does not exist"):
        SoftLabels(tmp_path / "absent", data, Augment(2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"slots": 0}, "slots is 0"),
        ({"slots": 2, "augment": None}, "slots is 2 .*expected 1"),
        ({"top": 7}, "top is 7; .* 1 to 6"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"seed": -1}, "seed is -1"),
        ({"augment": RandomCrop()}, "augment is a RandomCrop"),
        ({"teacher": network().train()}, "training mode"),
        ({"teacher": network(5)}, r"\(40, 5\); expected logits \(40, 6\)"),
        ({"data": replace(image_set(), labels=torch.zeros(40, 2))}, r"shape \(40, 2\)"),
    ],
)
def test_what_cannot_be_stored_is_refused(options, named, tmp_path):
    options = {"teacher": network(), "data": image_set(), "augment": Augment(), "path": tmp_path / "labels", **options}
    with pytest.raises(ValueError, match=named):
        make_soft_labels(**options)
    assert not (tmp_path / "labels").exists()


def test_more_than_256_classes_and_no_augmentation(tmp_path):
    data, teacher = image_set(classes=300), network(300)
    labels = make_soft_labels(teacher, data, None, tmp_path / "labels")
    assert (labels.slots, labels.top) == (1, 10)
    images, _, answers = next(labels.batches(40, seed=0, epoch=9))
    assert torch.equal(answers.topk(10).indices.sort().values, teacher(images).topk(10).indices.sort().values)
    p = shares(teacher(images)).detach()
    assert labels.lost == pytest.approx(float((p * (p.log() - answers.double())).sum(-1).mean()), rel=1e-3)


@needs_timm
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # fewer CPUs than workers
def test_images_in_files_have_their_crops_again(workers, tmp_path):
    root, about = fill(tmp_path / "images", train=4, test=1), Configuration(size=16)
    (train, _), augment = load_folder(root, about), RandomCrop(0.3, color_jitter=0.4)
    teacher = network(3, 16)
    make_soft_labels(teacher, train, augment, tmp_path / "labels", slots=2, top=3, batch_size=5)
    again, _ = load_folder(root, about, workers=workers)
    labels = SoftLabels(tmp_path / "labels", again, augment)
    first, second = (joined(labels.batches(4, seed=1, epoch=epoch)) for epoch in (0, 1))
    for images, _, answers in (first, second):
        full = teacher(images).detach().log_softmax(-1)
        gap = F.kl_div(answers.log_softmax(-1), full, log_target=True, reduction="batchmean")
        assert float(gap) < 1e-4
    orders = [np.argsort(np.random.default_rng((1, epoch)).permutation(12)) for epoch in (0, 1)]
    assert not torch.equal(first[0][orders[0]], second[0][orders[1]])
    files = train.images
    assert isinstance(files, ImageFiles)
    with pytest.raises(ValueError, match=r"crop is Crop.*0.875.*0.5"):
        SoftLabels(tmp_path / "labels", replace(train, images=ImageFiles(files.source, Crop(16, 0.5))), augment)
    (root / "train" / "ant" / "00.png").rename(root / "train" / "ant" / "0.png")
    with pytest.raises(ValueError, match=r"content .*images"):
        SoftLabels(tmp_path / "labels", load_folder(root, about)[0], augment)
