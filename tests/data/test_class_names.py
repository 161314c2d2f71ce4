"""What classes are called: folders, words for folders, torchvision's lists."""

from types import SimpleNamespace

from spequant.data import load_digits
from spequant.data.cifar import CIFAR10_LAYOUT, CIFAR100_LAYOUT
from spequant.data.class_names import class_names, class_words


def test_folders_get_the_words_that_a_list_has_for_them(tmp_path):
    folders = ["n01", "n02", "n03", "own"]
    assert class_words(folders, tmp_path / "words.txt") == tuple(folders)
    (tmp_path / "words.txt").write_text(
        "n00\tother\nn01\tcrane\nn02\tdining table, board\nn03\tcrane\nno line\nown\t\n"
    )
    expected = ("crane (n01)", "dining table, board", "crane (n03)", "own")
    assert class_words(folders, tmp_path / "words.txt") == expected
    (tmp_path / "words.txt").write_bytes(b"\xff\xfe\x00n01")
    assert class_words(folders, tmp_path / "words.txt") == tuple(folders)


def test_a_set_of_torchvision_says_its_names_or_none():
    assert class_names(SimpleNamespace(classes=["a", "b"])) == ("a", "b")
    assert class_names(SimpleNamespace(classes=[("tench", "Tinca tinca"), ("barn",)])) == ("tench, Tinca tinca", "barn")
    assert class_names(SimpleNamespace()) is None and class_names(SimpleNamespace(classes=10)) is None


def test_the_names_of_known_sets():
    assert [data.names for data in load_digits()] == [tuple("0123456789")] * 2
    assert CIFAR10_LAYOUT.names[3] == "cat" and CIFAR10_LAYOUT.classes == len(set(CIFAR10_LAYOUT.names)) == 10
    names = CIFAR100_LAYOUT.names
    assert names[0] == "apple" and names[99] == "worm" and list(names) == sorted(set(names)) and len(names) == 100
