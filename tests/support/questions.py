"""Questions about texts of random words, their windows of tokens, and logits that answer them."""

import numpy as np
import torch

from spequant.data.squad import Question
from spequant.data.windows import make_windows
from support.tokenizer import small_tokenizer


def some_questions(n, *, longest=60, seed=0):
    """Contexts of random words, now and then unknown ones and wide spaces; the answer is some of the words."""
    rng = np.random.default_rng(seed)
    questions = []
    for i in range(n):
        words = rng.choice(
            ["river", "old", "Towns", "builders", "kinged", "$12", "war-year", "stone,", "é", "zzz"], longest
        )
        words = words[: rng.integers(3, longest + 1)]
        gaps = rng.choice([" ", "  ", "\n"], len(words))
        first = int(rng.integers(0, len(words)))
        last = min(len(words) - 1, first + int(rng.integers(0, 4)))
        pieces = [word + gap for word, gap in zip(words, gaps, strict=True)]
        context, start = "".join(pieces), len("".join(pieces[:first]))
        answer = "".join(pieces[first : last + 1]).rstrip()
        asked = "  who built " + "the bridge " * int(rng.integers(0, 4))
        questions.append(Question(f"q{i}", asked, context, (answer,), (start,)))
    return questions


def some_windows(questions, **settings):
    """Of at most 32 tokens, 8 of them shared with the next."""
    return make_windows(questions, small_tokenizer(), **{"max_length": 32, "stride": 8, "offsets": True, **settings})


def spans(windows, questions):
    """(question, labelled text or None) of each window."""
    for i, number in enumerate(windows.question):
        offsets = windows.offsets[windows.bounds[i] : windows.bounds[i + 1]]
        begin, end = offsets[windows.starts[i], 0], offsets[windows.ends[i], 1]
        yield questions[number], None if begin < 0 else questions[number].context[begin:end]


def oracle(windows, length, dtype=torch.float32):
    """Logits that are high at the labels, and low where a window has none."""
    start = torch.zeros(len(windows), length, dtype=dtype)
    end = torch.zeros(len(windows), length, dtype=dtype)
    every = torch.arange(len(windows))
    start[every, torch.from_numpy(windows.starts)] = 10
    end[every, torch.from_numpy(windows.ends)] = 10
    return start, end
