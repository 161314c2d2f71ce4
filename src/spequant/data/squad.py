"""SQuAD 1.1 as a list of questions, from its official files or from rows in the form of the Hugging Face hub.

A damaged entry is an error that names its place. Questions that cannot be used are left out, and a warning counts them.
"""

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from spequant.data.questions import Question, QuestionSettings
from spequant.data.settings import data_folder
from spequant.extras import needs
from spequant.names import some_of

TRAIN_FILE, DEV_FILE = "train-v1.1.json", "dev-v1.1.json"
FOLDER = "squad"
HUB = "rajpurkar/squad"
SITE = "https://rajpurkar.github.io/SQuAD-explorer/"
EXCERPT_LENGTH = 60
"""Characters of a wrong value that a message shows."""
DROPPED_ANSWERS = "kept without some of their answers, which are empty or do not stand at answer_start"


@dataclass(frozen=True, kw_only=True)
class Squad(QuestionSettings):
    """SQuAD 1.1: 87,599 training and 10,570 test questions about texts from Wikipedia."""

    def load(self) -> tuple[list[Question], list[Question]]:
        return load_squad(data_folder(self.root), self.download)


def load_squad(root: Path | None, download: bool = False) -> tuple[list[Question], list[Question]]:
    """Read SQuAD 1.1.

    Args:
        root: Folder with `train-v1.1.json` and `dev-v1.1.json`, or with both in a folder `squad`. None: needs
            `download`.
        download: Whether to fetch the copy on the hub if `root` does not contain both files; it is stored in `root`,
            or in the cache of `datasets` if `root` is None.

    Returns:
        (train, 87,599 questions; dev, 10,570 questions with three answers or more).

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file is damaged, or there is neither `root` nor `download`.
        OSError: The hub cannot be reached.
    """
    if root is None and not download:
        raise ValueError(
            "data.root is not set; expected the folder of SQuAD: give --data.root DIR or set SPEQUANT_DATA, or have it "
            "fetched with data.download"
        )
    folders = [] if root is None else [Path(root) / FOLDER, Path(root)]
    complete = [folder for folder in folders if (folder / TRAIN_FILE).is_file() and (folder / DEV_FILE).is_file()]
    if download and not complete:
        return _fetch(root)
    # If only one file is missing, the error names the folder that contains the other one.
    incomplete = [folder for folder in folders if (folder / TRAIN_FILE).is_file() or (folder / DEV_FILE).is_file()]
    folder = (complete + incomplete + folders)[0]
    return read_squad(folder / TRAIN_FILE), read_squad(folder / DEV_FILE, answered=False)


def read_squad(path: Path, *, answered: bool = True) -> list[Question]:
    """Read the questions of a file in SQuAD 1.1's JSON format.

    Questions without a valid answer are left out, with one warning that counts them.

    Args:
        path: The file.
        answered: True, for training: an answer is valid if it stands at answer_start in the context. False, for
            evaluation: any text is a valid answer.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is damaged (the message has the place and the field), or no question can be used.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected a file of SQuAD 1.1, {TRAIN_FILE} or {DEV_FILE}. Set SPEQUANT_DATA or "
            f"--data.root to the folder that contains {FOLDER}; get the set from {SITE}, or with data.download"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); expected SQuAD 1.1's. Fetch it anew from {SITE}") from error
    return _usable(_file_rows(content, str(path)), answered, str(path))


def from_rows(rows: Iterable[Any], *, answered: bool = True, source: str) -> list[Question]:
    """Return the questions in `rows`, as `read_squad` does for a file.

    Args:
        rows: Rows {"id", "context", "question", "answers": {"text": [...], "answer_start": [...]}}, e.g. a
            `datasets.Dataset`.
        answered: As in `read_squad`.
        source: Name of the rows in messages.

    Raises:
        ValueError: A row is damaged, or no question can be used.
    """
    return _usable(((f"{source}, row {i}", row) for i, row in enumerate(rows)), answered, source)


def _fetch(root: Path | None) -> tuple[list[Question], list[Question]]:
    datasets = needs("datasets", "text")
    try:
        splits = datasets.load_dataset(HUB, cache_dir=None if root is None else str(root))
        train, dev = splits["train"], splits["validation"]
    except Exception as error:  # the hub's client, cache and reader raise many types
        raise OSError(
            f"{HUB} cannot be fetched ({error}); expected a connection to the hub, or {TRAIN_FILE} and {DEV_FILE} "
            f"from {SITE} in the folder that SPEQUANT_DATA or --data.root names"
        ) from error
    return from_rows(train, source=f"{HUB} train"), from_rows(dev, answered=False, source=f"{HUB} validation")


def _file_rows(content: Any, source: str) -> Iterator[tuple[str, Any]]:
    """Yield (place, row in the hub's form) of each question of a file."""
    for i, article in enumerate(_field(content, "data", list, source)):
        title = article.get("title") if isinstance(article, dict) else None
        in_article = f"{source}, article {title!r}" if isinstance(title, str) and title else f"{source}, article {i}"
        for j, paragraph in enumerate(_field(article, "paragraphs", list, in_article)):
            in_paragraph = f"{in_article}, paragraph {j}"
            context = _field(paragraph, "context", str, in_paragraph)
            for k, entry in enumerate(_field(paragraph, "qas", list, in_paragraph)):
                place = f"{in_paragraph}, question {k}"
                answers = _field(entry, "answers", list, _with_id(place, entry))
                if not all(isinstance(answer, dict) for answer in answers):
                    raise _field_error(answers, "answers", "a list of objects", _with_id(place, entry))
                columns = {name: [answer.get(name) for answer in answers] for name in ("text", "answer_start")}
                yield place, {**entry, "context": context, "answers": columns}


def _usable(rows: Iterable[tuple[str, Any]], answered: bool, source: str) -> list[Question]:
    """Return the usable questions of (place, row) pairs, with one warning about the others."""
    questions: list[Question] = []
    ids: set[str] = set()
    left_out: dict[str, list[str]] = {}
    for place, row in rows:
        id = _field(row, "id", str, place)
        question = _question(row, id, _with_id(place, row), answered)
        reason = "with an id that came before" if id in ids else _fault(question, answered)
        ids.add(id)
        if reason:
            left_out.setdefault(reason, []).append(id)
            continue
        if len(question.answers) < len(row["answers"]["text"]):
            left_out.setdefault(DROPPED_ANSWERS, []).append(id)
        questions.append(question)
    if left_out:
        reasons = "; ".join(f"{len(names)} {reason} ({some_of(names)})" for reason, names in left_out.items())
        warnings.warn(f"{source}: {len(questions)} questions are read, without those left out: {reasons}", stacklevel=3)
    if not questions:
        raise ValueError(f"{source} holds no question that can be used; expected SQuAD 1.1, from {SITE}")
    return questions


def _fault(question: Question, answered: bool) -> str | None:
    """Return why a question cannot be used, or None."""
    if not question.question.strip():
        return "with an empty question"
    if not question.context.strip():
        return "with an empty context"
    if not (_is_encodable(question.question) and _is_encodable(question.context)):
        return "with half a surrogate pair, which no tokenizer takes"
    if not question.answers:
        return "without an answer that stands at answer_start" if answered else "without the text of an answer"
    return None


def _question(row: Any, id: str, place: str, answered: bool) -> Question:
    """Return the question of a row, with its valid answers."""
    question, context = _field(row, "question", str, place), _field(row, "context", str, place)
    answers = _field(row, "answers", dict, place)
    texts = _field(answers, "text", list, f"{place}, answers")
    if answered or answers.get("answer_start") is not None:
        starts = _field(answers, "answer_start", list, f"{place}, answers")
    else:
        starts = [None] * len(texts)
    if len(texts) != len(starts):
        raise ValueError(
            f"{place}, answers: answer_start has {len(starts)} entries; expected {len(texts)}, one per text"
        )
    valid: list[tuple[str, int]] = []
    for i, (text, start) in enumerate(zip(texts, starts, strict=True)):
        if not isinstance(text, str):
            raise _field_error(text, "text", "a string", f"{place}, answer {i}")
        if not isinstance(start, Integral) and (answered or start is not None):
            raise _field_error(start, "answer_start", "an integer", f"{place}, answer {i}")
        first = -1 if start is None else int(start)
        if text.strip() and (not answered or (first >= 0 and context.startswith(text, first))):
            valid.append((text, first))
    return Question(id, question, context, tuple(text for text, _ in valid), tuple(first for _, first in valid))


JSON_TYPES = {str: "a string", list: "a list", dict: "an object"}


def _field(entry: Any, name: str, kind: type, place: str) -> Any:
    """Return `entry[name]`, which must have the type `kind`."""
    if not isinstance(entry, dict):
        raise ValueError(
            f"{place} is {_excerpt(entry)}; expected an object with {name}, {JSON_TYPES[kind]}. {_remedy()}"
        )
    value = entry.get(name)
    if not isinstance(value, kind):
        raise _field_error(value, name, JSON_TYPES[kind], place)
    return value


def _field_error(value: Any, name: str, expected: str, place: str) -> ValueError:
    state = "is missing" if value is None else f"is {_excerpt(value)}"
    return ValueError(f"{place}: {name} {state}; expected {expected}. {_remedy()}")


def _remedy() -> str:
    return f"Mend it, or fetch SQuAD 1.1 anew from {SITE}"


def _with_id(place: str, entry: Any) -> str:
    """Return `place` with the id of the question, if the entry has one."""
    id = entry.get("id") if isinstance(entry, dict) else None
    return f"{place} (id {id!r})" if isinstance(id, str) else place


def _is_encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _excerpt(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= EXCERPT_LENGTH else f"{text[:EXCERPT_LENGTH]}..."
