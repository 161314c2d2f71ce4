"""Answers from the start and end logits of a network, and their exact match and F1 as in SQuAD."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from spequant.data.squad import Question
from spequant.data.windows import Windows
from spequant.extras import needs

QUESTIONS_PER_SCORE = 100
"""torchmetrics adds up in fp32: over thousands of questions in one call, F1 would lose digits."""
LARGEST_LOGIT = float(np.finfo(np.float32).max)
"""Stands for +inf, so that the sum of two logits is finite."""

Logits = Tensor | np.ndarray | Sequence[Tensor] | Sequence[np.ndarray]
"""(windows, length), padded; or one row per window, with or without padding"""


def best_answers(
    windows: Windows,
    questions: Sequence[Question],
    start_logits: Logits,
    end_logits: Logits,
    *,
    n_best: int = 20,
    longest: int = 30,
) -> dict[str, str]:
    """Return the best answer to each question, from all of its windows.

    In each window the `n_best` highest start logits and as many end logits, of tokens of the context, are combined to
    answers of 1 to `longest` tokens. The score of an answer is start logit + end logit. Among equal scores the first
    wins, in the order of window, start and end. A logit that is NaN or -inf gives no answer.

    Args:
        windows: Windows of `questions`, made with `offsets=True`.
        questions: The questions, in the order from which the windows were made.
        start_logits, end_logits: One row per window, with one logit per token; padding on the right is ignored.
        n_best: Number of start and of end candidates per window, 1 or more.
        longest: Largest number of tokens of an answer, 1 or more.

    Returns:
        {id of the question: text of its answer}; the text is "" if the question has none.

    Raises:
        ValueError: A number is out of range, `windows` have no offsets or belong to other questions, or logits have
            another shape.
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
        score, first, last = _best_span(starts[i], ends[i], context, n_best, longest)
        if score > highest[number]:
            highest[number] = score
            question = questions[number]
            answers[question.id] = question.context[offsets[first, 0] : offsets[last, 1]].strip()
    return answers


def exact_match_and_f1(predictions: dict[str, str], questions: Sequence[Question]) -> tuple[float, float]:
    """Return the exact match and F1 of predictions in percent, as torchmetrics computes them for SQuAD.

    Args:
        predictions: {id of the question: text}, as `best_answers` returns it; a missing one counts as "".
        questions: All questions that are scored, each with its right answers.

    Returns:
        (exact match, F1), means over `questions`, 0 to 100.

    Raises:
        ValueError: There is no question, a question has no answer, or `predictions` has only other ids.
        ModuleNotFoundError: torchmetrics (extra `text`) is not installed.
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
    for begin in range(0, len(questions), QUESTIONS_PER_SCORE):
        chunk = questions[begin : begin + QUESTIONS_PER_SCORE]
        answers = [{"id": question.id, "prediction_text": predictions.get(question.id, "")} for question in chunk]
        targets = [{"id": question.id, "answers": {"text": list(question.answers)}} for question in chunk]
        score = squad(answers, targets)
        exact += float(score["exact_match"]) * len(chunk)
        f1 += float(score["f1"]) * len(chunk)
    return exact / len(questions), f1 / len(questions)


def _rows(logits: Logits, windows: Windows, name: str) -> list[np.ndarray]:
    """Return one 1-d float array per window, at least as long as the window."""
    if len(logits) != len(windows):
        raise ValueError(f"{name} has {len(logits)} rows; expected {len(windows)}, one per window")
    rows = [_array(row) for row in (_array(logits) if isinstance(logits, Tensor) else logits)]
    for i, (row, length) in enumerate(zip(rows, windows.lengths, strict=True)):
        if row.ndim != 1 or len(row) < length:
            raise ValueError(
                f"{name}[{i}] has shape {row.shape}; expected ({length},), one number per token of window {i}, or "
                "longer, padded on the right"
            )
    return rows


def _array(values: Tensor | np.ndarray) -> np.ndarray:
    # numpy has no bfloat16.
    return values.detach().float().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _best_span(
    starts: np.ndarray, ends: np.ndarray, context: np.ndarray, n_best: int, longest: int
) -> tuple[float, int, int]:
    """Return (score, start, end) of the best span of tokens in `context`; the score is -inf if there is none."""
    candidates = []
    for logits in (starts, ends):
        values = logits[context].astype(np.float64)
        values = np.nan_to_num(values, nan=-np.inf, posinf=LARGEST_LOGIT, neginf=-np.inf)
        best = np.sort(np.argsort(-values, kind="stable")[:n_best])
        candidates.append((context[best], values[best]))
    (first, start), (last, end) = candidates
    tokens = last - first[:, None] + 1
    scores = np.where((tokens >= 1) & (tokens <= longest), start[:, None] + end, -np.inf)
    row, column = np.unravel_index(np.argmax(scores), scores.shape)
    return float(scores[row, column]), int(first[row]), int(last[column])
