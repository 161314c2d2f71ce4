"""What `bench train` trains: networks with batches in the shape of their data."""

import sys

import pytest
import torch

from spequant.app.bench.subjects import make_subject

CPU = torch.device("cpu")


def test_a_network_of_images_has_a_batch_that_it_takes():
    subject = make_subject("resnet8", 4, 8, CPU)
    images, labels = subject.batch
    assert subject.network.training and subject.residual == 8 and [*subject.tensors] == [images, labels]
    assert images.shape == (4, 3, 8, 8) and labels.shape == (4,) and torch.equal(subject.part(3), images[:3])
    assert subject.network(images).shape == (4, 10)
    assert torch.equal(make_subject("resnet8", 4, 8, CPU).batch[0], images)  # the very same ones


NETWORKS = """
from torch import nn

class Convolution(nn.Sequential):
    def __init__(self, classes=4):
        super().__init__(nn.Conv2d(3, classes, 8), nn.Flatten())

def maps():
    return nn.Conv2d(3, 4, 8)

def words():
    return nn.Embedding(4, 4)
"""


def test_a_network_of_the_users_own(tmp_path):
    (tmp_path / "networks.py").write_text(NETWORKS)
    subject = make_subject(f"{tmp_path / 'networks.py'}:Convolution", 4, 8, CPU)
    images, labels = subject.batch
    assert subject.network(images).shape == (4, 10) and labels.max() < 10
    for name, named in (("maps", r":maps', .*\(2, 4, 1, 1\)"), ("words", "size is 8: .*:words")):
        with pytest.raises(ValueError, match=named):
            make_subject(f"{tmp_path / 'networks.py'}:{name}", 4, 8, CPU)


@pytest.mark.parametrize(
    ("name", "size", "named"),
    [
        ("resnet19", 8, "network is 'resnet19'; .*resnet8, resnet20.*bert6, bert12"),
        ("vgg16_bn", 8, "size is 8: vgg16_bn"),
    ],
)
def test_what_is_no_subject_is_named(name, size, named):
    with pytest.raises(ValueError, match=named):
        make_subject(name, 2, size, CPU)


def test_without_the_extra_the_error_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"transformers .*pip install 'spequant\[text\]'"):
        make_subject("bert6", 2, 8, CPU)
