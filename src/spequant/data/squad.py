"""SQuAD 1.1 as a list of questions, from its official files or from rows as the hub has them. What is damaged is named,
what cannot serve is left out and counted; tokens are made in `windows`, scores in `answers`."""

import json
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from spequant.data.questions import Question, QuestionSettings
from spequant.data.settings import folder_of
from spequant.extras import needs
from spequant.names import some_of

TRAIN, DEV = "train-v1.1.json", "dev-v1.1.json"
FOLDER = "squad"
HUB = "rajpurkar/squad"
SITE = "https://rajpurkar.github.io/SQuAD-explorer/"
EXCERPT = 60  # characters of a wrong value that a message shows
SOME = "kept without some answers, which are empty or not where answer_start says"


@dataclass(frozen=True, kw_only=True)
class Squad(QuestionSettings):
    """SQuAD 1.1: 87,599 questions about texts of Wikipedia, and 10,570 to test on."""

    def load(self) -> tuple[list[Question], list[Question]]:
        return load_squad(folder_of(self.root), self.download)


def load_squad(root: Path | None, download: bool = False) -> tuple[list[Question], list[Question]]:
    """(train, 87,599 questions; dev, 10,570 with three answers or more).

    root: holds `squad/train-v1.1.json` and `squad/dev-v1.1.json`, or these two files themselves.
    download: where they are not there, fetch the hub's copy into `root` (None: the hub's own cache).
    FileNotFoundError, ValueError: a file that is missing or damaged. OSError: the hub cannot be reached.
    """
    if root is None and not download:
        raise ValueError(
            "data.root is not set; expected the folder of SQuAD: give --data.root DIR or set SPEQUANT_DATA, or have it "
            "fetched with data.download"
        )
    folders = [] if root is None else [Path(root) / FOLDER, Path(root)]
    whole = [folder for folder in folders if (folder / TRAIN).is_file() and (folder / DEV).is_file()]
    if download and not whole:
        return _fetched(root)
    # Where one of the two is missing, the folder that holds the other is the one to be named.
    begun = [folder for folder in folders if (folder / TRAIN).is_file() or (folder / DEV).is_file()]
    folder = (whole + begun + folders)[0]
    return read_squad(folder / TRAIN), read_squad(folder / DEV, answered=False)


def read_squad(path: Path, *, answered: bool = True) -> list[Question]:
    """The questions of one file in SQuAD 1.1's JSON.

    answered: True, for training: an answer counts where its context has it at answer_start, a question without one is
    left out. False, for evaluation: texts count, wherever they stand, and a question without one is left out.
    What is left out is counted in one warning. ValueError: a damaged file, with the place and the field.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path} does not exist; expected a file of SQuAD 1.1, {TRAIN} or {DEV}. Let SPEQUANT_DATA or --data.root "
            f"name the folder that holds {FOLDER}; to be had at {SITE}, or with data.download"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); expected SQuAD 1.1's. Fetch it anew from {SITE}") from error
    return _checked(_file_rows(content, str(path)), answered, str(path))


def from_rows(rows: Iterable[Any], *, answered: bool = True, source: str) -> list[Question]:
    """As `read_squad`, of rows {"id", "context", "question", "answers": {"text": [...], "answer_start": [...]}}, e.g. a
    `datasets.Dataset`. source: what messages call them."""
    return _checked(((f"{source}, row {i}", row) for i, row in enumerate(rows)), answered, source)


def _fetched(root: Path | None) -> tuple[list[Question], list[Question]]:
    datasets = needs("datasets", "text")
    try:
        parts = datasets.load_dataset(HUB, cache_dir=None if root is None else str(root))
        train, dev = parts["train"], parts["validation"]
    except Exception as error:  # the hub's client, its cache and its reader raise a dozen kinds
        raise OSError(
            f"{HUB} cannot be fetched ({error}); expected a network that reaches the hub, or {TRAIN} and {DEV} from "
            f"{SITE} in the folder that SPEQUANT_DATA or --data.root names"
        ) from error
    return from_rows(train, source=f"{HUB} train"), from_rows(dev, answered=False, source=f"{HUB} validation")


def _file_rows(content: Any, source: str) -> Iterator[tuple[str, Any]]:
    """(place, row as the hub has it) of each question of a file."""
    for i, article in enumerate(_field(content, "data", list, source)):
        title = article.get("title") if isinstance(article, dict) else None
        where = f"{source}, article {title!r}" if isinstance(title, str) and title else f"{source}, article {i}"
        for j, paragraph in enumerate(_field(article, "paragraphs", list, where)):
            spot = f"{where}, paragraph {j}"
            context = _field(paragraph, "context", str, spot)
            for k, entry in enumerate(_field(paragraph, "qas", list, spot)):
                place = f"{spot}, question {k}"
                given = _field(entry, "answers", list, _named(entry, place))
                if not all(isinstance(answer, dict) for answer in given):
                    raise _wrong(given, "answers", "a list of objects", _named(entry, place))
                answers = {name: [answer.get(name) for answer in given] for name in ("text", "answer_start")}
                yield place, {**entry, "context": context, "answers": answers}


def _checked(rows: Iterable[tuple[str, Any]], answered: bool, source: str) -> list[Question]:
    """Of (place, row): the questions that can serve. One warning for what cannot; ValueError where nothing can."""
    kept: list[Question] = []
    seen: set[str] = set()
    left: dict[str, list[str]] = {}
    for place, row in rows:
        id = _field(row, "id", str, place)
        question = _question(row, id, _named(row, place), answered)
        reason = "with an id that came before" if id in seen else _fault(question, answered)
        seen.add(id)
        if reason:
            left.setdefault(reason, []).append(id)
            continue
        if len(question.answers) < len(row["answers"]["text"]):
            left.setdefault(SOME, []).append(id)
        kept.append(question)
    if left:
        reasons = "; ".join(f"{len(ids)} {reason} ({some_of(ids)})" for reason, ids in left.items())
        warnings.warn(f"{source}: {len(kept)} questions are read, without those left out: {reasons}", stacklevel=3)
    if not kept:
        raise ValueError(f"{source} holds no question that can serve; expected SQuAD 1.1, to be had at {SITE}")
    return kept


def _fault(question: Question, answered: bool) -> str | None:
    """Why a question cannot serve."""
    if not question.question.strip():
        return "with an empty question"
    if not question.context.strip():
        return "with an empty context"
    if not (_whole(question.question) and _whole(question.context)):
        return "with half a surrogate pair, which no tokenizer takes"
    if not question.answers:
        return "without an answer that stands at answer_start" if answered else "without the text of an answer"
    return None


def _question(row: Any, id: str, place: str, answered: bool) -> Question:
    """With those of its answers that count."""
    question, context = _field(row, "question", str, place), _field(row, "context", str, place)
    answers = _field(row, "answers", dict, place)
    texts = _field(answers, "text", list, f"{place}, answers")
    if answered or answers.get("answer_start") is not None:
        starts = _field(answers, "answer_start", list, f"{place}, answers")
    else:
        starts = [None] * len(texts)
    if len(texts) != len(starts):
        raise ValueError(
            f"{place}, answers: answer_start has {len(starts)} entries; expected {len(texts)}, one for each text"
        )
    kept: list[tuple[str, int]] = []
    for i, (text, start) in enumerate(zip(texts, starts, strict=True)):
        if not isinstance(text, str):
            raise _wrong(text, "text", "a string", f"{place}, answer {i}")
        if not isinstance(start, Integral) and (answered or start is not None):
            raise _wrong(start, "answer_start", "an integer", f"{place}, answer {i}")
        at = -1 if start is None else int(start)
        if text.strip() and (not answered or (at >= 0 and context.startswith(text, at))):
            kept.append((text, at))
    return Question(id, question, context, tuple(text for text, _ in kept), tuple(at for _, at in kept))


KINDS = {str: "a string", list: "a list", dict: "an object"}


def _field(entry: Any, name: str, kind: type, place: str) -> Any:
    """`entry[name]`, an object of type `kind`."""
    if not isinstance(entry, dict):
        raise ValueError(f"{place} is {_shown(entry)}; expected an object with {name}, {KINDS[kind]}. {_remedy()}")
    value = entry.get(name)
    if not isinstance(value, kind):
        raise _wrong(value, name, KINDS[kind], place)
    return value


def _wrong(value: Any, name: str, expected: str, place: str) -> ValueError:
    found = "is missing" if value is None else f"is {_shown(value)}"
    return ValueError(f"{place}: {name} {found}; expected {expected}. {_remedy()}")


def _remedy() -> str:
    return f"Mend it, or fetch SQuAD 1.1 anew from {SITE}"


def _named(entry: Any, place: str) -> str:
    """`place` with the question's id, where it has one."""
    id = entry.get("id") if isinstance(entry, dict) else None
    return f"{place} (id {id!r})" if isinstance(id, str) else place


def _whole(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= EXCERPT else f"{text[:EXCERPT]}..."
