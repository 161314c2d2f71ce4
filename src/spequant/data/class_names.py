"""What classes are called: by torchvision's sets, and by a list of words for folders that have numbers for names."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def class_names(source: Any) -> tuple[str, ...] | None:
    """Return the names of the classes of a set, in the order of its labels; None: it has none.

    Args:
        source: A set, one of torchvision's for instance, with the list `classes`: of names, or of names with synonyms.
    """
    names = getattr(source, "classes", None)
    if not isinstance(names, list | tuple):
        return None
    return tuple(", ".join(map(str, name)) if isinstance(name, list | tuple) else str(name) for name in names)


def class_words(folders: Sequence[str], file: Path) -> tuple[str, ...]:
    """Return the names of class folders in words, where `file` has words for them.

    Args:
        folders: Names of the folders, in the order of the labels.
        file: Text with the lines "FOLDER<tab>WORDS", also of other folders; it need not exist.

    Returns:
        One name per folder: its words, with the folder's name behind them if another has the same words; or the
        folder's name.
    """
    if not file.is_file():
        return tuple(folders)
    lines = (line.partition("\t") for line in file.read_text(encoding="utf-8", errors="replace").splitlines())
    words = {folder: text.strip() for folder, _, text in lines if text.strip()}
    count = Counter(words.get(folder) for folder in folders)
    return tuple(
        folder if folder not in words else words[folder] if count[words[folder]] == 1 else f"{words[folder]} ({folder})"
        for folder in folders
    )
