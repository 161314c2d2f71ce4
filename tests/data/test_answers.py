"""Answers from logits against brute force; exact match and F1 against an implementation of the official rules."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from reference import squad as literal
from spequant.data.answers import best_answers, exact_match_and_f1
from spequant.data.squad import Question
from support.questions import oracle, some_questions, some_windows


@pytest.fixture(scope="module")
def questions():
    return some_questions(60)


@pytest.fixture(scope="module")
def windows(questions):
    return some_windows(questions)


@pytest.mark.parametrize(("n_best", "longest"), [(20, 30), (3, 2), (1, 1), (100, 100)])
@pytest.mark.parametrize("ties", [False, True])
def test_best_answers_equal_those_of_brute_force(questions, windows, n_best, longest, ties):
    rng = np.random.default_rng(1)
    start, end = rng.normal(size=(2, len(windows), 32)).astype(np.float32)
    if ties:
        start, end = np.round(start), np.round(end)
    expected = literal.best_answers(windows, questions, start, end, n_best, longest)
    assert best_answers(windows, questions, start, end, n_best=n_best, longest=longest) == expected
    unpadded = [
        [torch.from_numpy(a[:n]) for a, n in zip(logits, windows.lengths, strict=True)] for logits in (start, end)
    ]
    assert best_answers(windows, questions, *unpadded, n_best=n_best, longest=longest) == expected
    padded = torch.from_numpy(start), torch.from_numpy(end)
    assert best_answers(windows, questions, *padded, n_best=n_best, longest=longest) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_of_the_right_answers_score_100(questions, windows, dtype):
    answers = best_answers(windows, questions, *oracle(windows, 32, dtype))
    assert exact_match_and_f1(answers, questions) == (100, 100)


def test_nan_and_minus_infinity_give_no_answer(questions, windows):
    start, end = oracle(windows, 32)
    first = torch.from_numpy(windows.question == 0)
    expected = best_answers(windows, questions, start, end)
    for value in (float("nan"), -float("inf")):
        start[first] = value
        assert best_answers(windows, questions, start, end) == {**expected, "q0": ""}
    start[first] = end[first] = float("inf")
    assert best_answers(windows, questions, start, end)["q0"] != ""


def test_logits_that_do_not_fit_the_windows_are_refused(questions, windows):
    start, end = oracle(windows, 32)
    longest = int(np.argmax(windows.lengths))
    short = [np.zeros(n) for n in windows.lengths]
    short[longest] = short[longest][:-1]
    for arguments, message in (
        ((questions, start[1:], end), rf"start_logits has {len(windows) - 1} rows; expected {len(windows)}"),
        ((questions, start, short), rf"end_logits\[{longest}\] has shape \(31,\); expected \(32,\)"),
        ((questions, start, end[:, :, None]), r"end_logits\[0\] has shape \(32, 1\)"),
        ((questions[1:], start, end), r"questions are 59; expected the 60"),
    ):
        with pytest.raises(ValueError, match=message):
            best_answers(windows, *arguments)
    for name in ("n_best", "longest"):
        with pytest.raises(ValueError, match=f"{name} is 0; expected 1 or more"):
            best_answers(windows, questions, start, end, **{name: 0})
    with pytest.raises(ValueError, match="windows have no offsets"):
        best_answers(replace(windows, offsets=None), questions, start, end)


def test_scores_equal_those_of_the_official_rules():
    rng = np.random.default_rng(0)
    words = ["The", "a", "king,", "King", "of", "stone", "(old)", "U.S.", "an", "war-year", "  ", "1942"]

    def phrase():
        return " ".join(rng.choice(words, rng.integers(1, 5)))

    questions = [
        Question(f"q{i}", "who", "x", tuple(f"{phrase()} river" for _ in range(rng.integers(1, 4))), (-1,) * 3)
        for i in range(350)
    ]
    predictions = {}
    for question in questions:
        kind = rng.integers(4)
        texts = [phrase(), f"the {question.answers[-1].upper()}!", f"river {phrase()}", ""]
        predictions[question.id] = texts[kind]
    del predictions["q5"]
    exact, f1 = exact_match_and_f1(predictions, questions)
    expected = literal.evaluation(predictions, questions)
    assert exact == pytest.approx(expected[0], abs=1e-4) and f1 == pytest.approx(expected[1], abs=1e-4)
    assert 10 < exact < f1 < 90
    assert exact_match_and_f1({}, questions) == (0, 0)


def test_scores_of_nothing_are_refused(questions):
    with pytest.raises(ValueError, match="questions are none"):
        exact_match_and_f1({}, [])
    with pytest.raises(ValueError, match=r"predictions .*\('x' \.\.\.\) .*questions \('q0'"):
        exact_match_and_f1({"x": "king"}, questions)
    with pytest.raises(ValueError, match=r"question q .*no answer"):
        exact_match_and_f1({}, [Question("q", "who", "x", (), ())])
