"""Questions about texts whose answers stand in the text, and what a recipe says of a set of them."""

from dataclasses import dataclass
from pathlib import Path

from spequant.data.settings import DataSettings


@dataclass(frozen=True)
class Question:
    """A question about a text. answers: the annotators', one or more. starts: first character of each in `context`, -1
    where an evaluation set does not say."""

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class QuestionSettings(DataSettings):
    """Of questions about texts, whose answers stand in the text."""

    root: Path | None = None
    """folder that holds the set; None: the environment's SPEQUANT_DATA"""
    download: bool = False
    """fetch the questions from the hub where root does not hold them"""
    max_length: int = 384
    """tokens of a window, including the question and special tokens"""
    stride: int = 128
    """tokens that a window of a longer text shares with the next"""

    def load(self) -> tuple[list[Question], list[Question]]:
        """(train, dev)."""
        raise NotImplementedError(f"{type(self).__qualname__} has no load")
