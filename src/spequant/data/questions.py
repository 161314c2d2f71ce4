"""Questions about texts whose answers are parts of the text, and the settings of a set of them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path

from spequant.data.settings import DataSettings


@dataclass(frozen=True)
class Question:
    """A question about a text.

    Attributes:
        id: Name that is unique in the set.
        question: The question.
        context: The text that contains the answers.
        answers: Answers of the annotators, one or more.
        starts: First character of each answer in `context`; -1 if an evaluation set does not have it.
    """

    id: str
    question: str
    context: str
    answers: tuple[str, ...]
    starts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class QuestionSettings(DataSettings, ABC):
    """Base of the settings of a set of questions about texts."""

    root: Path | None = None
    """folder that contains the set; None: the folder in the environment variable SPEQUANT_DATA"""
    download: bool = False
    """fetch the questions from the hub if root does not contain them"""
    max_length: int = 384
    """largest number of tokens per window, including the question and special tokens"""
    stride: int = 128
    """tokens of the text that a window shares with the next one, if the text needs several windows"""

    @abstractmethod
    def load(self) -> tuple[list[Question], list[Question]]:
        """Return the questions (train, dev)."""
