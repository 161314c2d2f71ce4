"""From a network's logits of start and end to answers, and from answers to SQuAD's exact match and F1."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from spequant.data.squad import Question
from spequant.data.windows import Windows
from spequant.extras import needs

CHUNK = 100  # questions that are scored together
LARGEST = float(np.finfo(np.float32).max)  # of a logit: two of them still add up to a number

Logits = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]
"""(windows, length), padded; or a row for each window, of its own length or padded"""


def best_answers(
    windows: Windows,
    questions: Sequence[Question],
    start_logits: Logits,
    end_logits: Logits,
    *,
    n_best: int = 20,
    longest: int = 30,
) -> dict[str, str]:
    """The text that each question's windows score highest, by id; "" where there is none.

    Of a window: the `n_best` highest starts and as many ends among the tokens of its context, paired where the end is
    not before the start and the two are at most `longest` tokens; their score is start + end logit. Of equal scores the
    first counts: by window, start, end. A logit that is NaN or -inf makes no answer.
    windows: of `questions`, in their order, made with offsets.
    """
    for name, value in (("n_best", n_best), ("longest", longest)):
        if value < 1:
            raise ValueError(f"{name} is {value!r}; expected 1 or more")
    if windows.offsets is None:
        raise ValueError("windows have no offsets; expected those of make_windows(..., offsets=True)")
    if len(questions) != windows.questions:
        raise ValueError(
            f"questions are {len(questions)}; expected the {windows.questions} that the windows were made of"
        )
    starts, ends = _rows(start_logits, windows, "start_logits"), _rows(end_logits, windows, "end_logits")
    answers = {question.id: "" for question in questions}
    highest = np.full(len(questions), -np.inf)
    for i, number in enumerate(windows.question):
        offsets = windows.offsets[windows.bounds[i] : windows.bounds[i + 1]]
        context = np.flatnonzero(offsets[:, 0] >= 0)
        if not len(context):
            continue
        score, first, last = _best(starts[i], ends[i], context, n_best, longest)
        if score > highest[number]:
            highest[number] = score
            question = questions[number]
            answers[question.id] = question.context[offsets[first, 0] : offsets[last, 1]].strip()
    return answers


def exact_match_and_f1(predictions: dict[str, str], questions: Sequence[Question]) -> tuple[float, float]:
    """Per cent, over all of `questions`, by torchmetrics; a question without a prediction counts as answered with "".

    predictions: by id, as of `best_answers`.
    """
    if not questions:
        raise ValueError("questions are none; expected one or more")
    unanswered = [question.id for question in questions if not question.answers]
    if unanswered:
        raise ValueError(f"question {unanswered[0]} has no answer to compare with; expected one or more")
    if predictions and not any(question.id in predictions for question in questions):
        raise ValueError(
            f"predictions are of other ids ({next(iter(predictions))!r} ...) than questions ({questions[0].id!r} ...); "
            "expected those of the same set"
        )
    squad = needs("torchmetrics.functional.text", "text").squad
    exact = f1 = 0.0
    for begin in range(0, len(questions), CHUNK):  # torchmetrics adds up in fp32: thousands would cost F1 its digits
        chunk = questions[begin : begin + CHUNK]
        made = [{"id": question.id, "prediction_text": predictions.get(question.id, "")} for question in chunk]
        truth = [{"id": question.id, "answers": {"text": list(question.answers)}} for question in chunk]
        score = squad(made, truth)
        exact += float(score["exact_match"]) * len(chunk)
        f1 += float(score["f1"]) * len(chunk)
    return exact / len(questions), f1 / len(questions)


def _rows(logits: Logits, windows: Windows, name: str) -> list[np.ndarray]:
    """A 1-d float array for each window, at least as long as it."""
    if len(logits) != len(windows):
        raise ValueError(f"{name} has {len(logits)} rows; expected {len(windows)}, one for each window")
    rows = [_array(row) for row in (_array(logits) if isinstance(logits, Tensor) else logits)]
    for i, (row, length) in enumerate(zip(rows, windows.lengths, strict=True)):
        if row.ndim != 1 or len(row) < length:
            raise ValueError(
                f"{name}[{i}] has shape {row.shape}; expected ({length},), a number for each token of window {i}, or "
                "longer, padded on the right"
            )
    return rows


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    """numpy has no bfloat16."""
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _best(
    starts: np.ndarray, ends: np.ndarray, context: np.ndarray, n_best: int, longest: int
) -> tuple[float, int, int]:
    """(score, start, end) of the highest pair of tokens in `context`; -inf where none is allowed."""
    tops = []
    for logits in (starts, ends):
        inside = np.nan_to_num(logits[context].astype(np.float64), nan=-np.inf, posinf=LARGEST, neginf=-np.inf)
        top = np.sort(np.argsort(-inside, kind="stable")[:n_best])
        tops.append((context[top], inside[top]))
    (first, start), (last, end) = tops
    tokens = last - first[:, None] + 1
    scores = np.where((tokens >= 1) & (tokens <= longest), start[:, None] + end, -np.inf)
    row, column = np.unravel_index(np.argmax(scores), scores.shape)
    return float(scores[row, column]), int(first[row]), int(last[column])
