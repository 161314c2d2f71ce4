"""Literal twins of question answering: SQuAD 1.1's evaluation, the search for the best answer, labels and batches."""

import math
import re
import string


def normalised(text):
    """Lower case, no punctuation, no articles, single spaces."""
    text = "".join(c for c in text.lower() if c not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def f1(prediction, truth):
    left, common = normalised(truth).split(), 0
    predicted, size = normalised(prediction).split(), len(normalised(truth).split())
    for word in predicted:
        if word in left:
            left.remove(word)
            common += 1
    if common == 0:
        return 0.0
    precision, recall = common / len(predicted), common / size
    return 2 * precision * recall / (precision + recall)


def evaluation(predictions, questions):
    """(exact match, F1), per cent; of several answers the one that scores best; no prediction: 0."""
    exact = total = 0.0
    for question in questions:
        if question.id not in predictions:
            continue
        given = predictions[question.id]
        exact += max(normalised(given) == normalised(answer) for answer in question.answers)
        total += max(f1(given, answer) for answer in question.answers)
    return 100 * exact / len(questions), 100 * total / len(questions)


def best_answers(windows, questions, start_logits, end_logits, n_best, longest):
    """Every pair of the `n_best` starts and ends of every window, one after the other."""
    answers = {}
    for number, question in enumerate(questions):
        best, answers[question.id] = -math.inf, ""
        for i in range(len(windows)):
            if windows.question[i] != number:
                continue
            offsets = windows.offsets[windows.bounds[i] : windows.bounds[i + 1]].tolist()
            context = [j for j, (begin, _) in enumerate(offsets) if begin >= 0]
            starts, ends = [float(x) for x in start_logits[i]], [float(x) for x in end_logits[i]]
            for first in sorted(sorted(context, key=lambda j, of=starts: (-of[j], j))[:n_best]):
                for last in sorted(sorted(context, key=lambda j, of=ends: (-of[j], j))[:n_best]):
                    if first <= last < first + longest and starts[first] + ends[last] > best:
                        best = starts[first] + ends[last]
                        answers[question.id] = question.context[offsets[first][0] : offsets[last][1]].strip()
    return answers


def span(offsets, question):
    """(first, last) token that holds the first and the last character of the first answer; None: one is in no token.

    offsets: of a window's tokens, -1 outside the context.
    """
    answer = question.answers[0]
    first_character = question.starts[0]
    last_character = first_character + len(answer) - 1
    first = [i for i, (begin, end) in enumerate(offsets) if begin <= first_character < end]
    last = [i for i, (begin, end) in enumerate(offsets) if begin <= last_character < end]
    return (first[0], last[-1]) if first and last else None


def padded(rows, width, pad):
    """(rows, mask), lists of `width`."""
    return [row + [pad] * (width - len(row)) for row in rows], [[1] * len(r) + [0] * (width - len(r)) for r in rows]
