"""A recipe on questions about texts, as in SQuAD 1.1: the network marks where in the text the answer is."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from spequant.app.recipes.recipe import Recipe
from spequant.app.runs.folder import NETWORK, weight_file
from spequant.app.runs.reporter import Track, untracked
from spequant.app.runs.weights import origin_named
from spequant.calibration.batches import modes_kept
from spequant.data import (
    Question,
    QuestionSettings,
    Windows,
    best_answers,
    check_tokenizer,
    eval_windows,
    exact_match_and_f1,
    make_windows,
    train_windows,
)
from spequant.methods.tasks import SpanExtraction
from spequant.models import configuration, load_tokenizer, load_weights, make_answering
from spequant.processes import gathered, portion, rank, world

ORDER_SEED = 2009_14502  # fixed: every run holds out the same questions
CALIBRATION_WINDOWS = 256  # windows
SAMPLE_WINDOWS = 16
WINDOWS_AT_ONCE = 32

AnswerWindows = Callable[[dict[str, Tensor]], Tensor]
"""From a batch of windows to logits of start and end, (batch, 2, length)."""


@dataclass(frozen=True)
class QuestionSet:
    """Questions, and the windows of their texts, with offsets."""

    questions: list[Question]
    windows: Windows

    def __len__(self) -> int:
        return len(self.questions)

    def first(self, count: int) -> "QuestionSet":
        """Return the first `count` questions."""
        return QuestionSet(self.questions[:count], self.windows.part(count))


class Questions:
    """Questions as a `fields.Field`. Samples are windows in training, and questions in tests."""

    example: Tensor | None = None

    def __init__(self, recipe: Recipe, device: torch.device):
        assert isinstance(recipe.data, QuestionSettings)
        self.recipe, self.device, self.data = recipe, device, recipe.data
        self.task = recipe.chosen_task or SpanExtraction()
        name, data = recipe.network.name, recipe.data
        self.tokenizer, self.config = load_tokenizer(name), configuration(name)
        check_tokenizer(self.tokenizer, self.config, max_length=data.max_length)
        train, self.dev = data.load()
        chosen, held_out = divided(train, data.images, data.held_out)
        self.train = make_windows(chosen, self.tokenizer, max_length=data.max_length, stride=data.stride)
        self.held_out = question_set(held_out, self.tokenizer, data) if held_out else None

    @cached_property
    def test(self) -> QuestionSet:
        """The questions to test on; their windows are made at the first use."""
        return question_set(self.dev, self.tokenizer, self.data)

    @property
    def answers(self) -> None:
        """There are no soft labels of questions."""
        return None

    @property
    def sizes(self) -> tuple[int, int, int]:
        return len(self.train), 0 if self.held_out is None else len(self.held_out), len(self.dev)

    def network(self) -> nn.Module:
        choice = self.recipe.network
        whole = choice.weights is None and choice.pretrained
        with origin_named(self.recipe):
            model = make_answering(choice.name, pretrained=whole, new_head=choice.new_head)
            if choice.weights is not None:
                load_weights(model, weight_file(choice.weights), new_head=choice.new_head)
        return model.to(self.device)

    def batches(self, epoch: int, start: int) -> Iterator[Any]:
        settings = self.recipe.train
        part = portion(settings.batch_size, "train.batch_size")
        batches = train_windows(
            self.train, settings.batch_size, seed=settings.seed, epoch=epoch, start=start, part=part
        )
        return (on_device(batch, self.device) for batch in batches)

    def calibration(self) -> list[Any]:
        size = min(self.recipe.train.batch_size, len(self.train))
        batches = train_windows(self.train, size, seed=0, epoch=0)
        return [on_device(_inputs(batch), self.device) for batch in islice(batches, -(-CALIBRATION_WINDOWS // size))]

    def statistics(self) -> Iterator[Any]:
        return iter(self.calibration())

    def sample(self) -> dict[str, Tensor]:
        return {name: values[:SAMPLE_WINDOWS] for name, values in self.calibration()[0].items()}

    def measure(self, model: nn.Module, *, held_out: bool = False, track: Track = untracked) -> dict[str, float]:
        """Return exact match and F1, in per cent."""
        chosen = self.held_out if held_out else self.test
        if chosen is None:
            return {}
        with modes_kept(model):
            return score(chosen, answer_by(model.eval(), self.device), track)

    def keep(self, folder: Path) -> None:
        self.config.save_pretrained(folder / NETWORK)
        self.tokenizer.save_pretrained(folder / NETWORK)


def divided(questions: list[Question], count: int | None, held_out: int) -> tuple[list[Question], list[Question]]:
    """Divide questions into those to train on and those held out.

    Texts are put in an order that is drawn once; questions of one text stay together.

    Args:
        questions: all of them.
        count: how many to train on, from the start of the order; None: all that are not held out.
        held_out: how many to hold out, from the end of the order. If some questions of a text are held out, its other
            questions are in neither part.

    Raises:
        ValueError: there are not so many questions.
    """
    texts: dict[str, list[Question]] = {}
    for question in questions:
        texts.setdefault(question.context, []).append(question)
    groups = list(texts.values())
    order = np.random.default_rng(ORDER_SEED).permutation(len(groups))
    drawn = [question for i in order for question in groups[i]]
    if not 0 <= held_out < len(drawn):
        raise ValueError(f"data.held_out is {held_out!r}; expected 0 to {len(drawn) - 1}, fewer than the questions")
    rest, held = drawn[: len(drawn) - held_out], drawn[len(drawn) - held_out :]
    while rest and held and rest[-1].context == held[0].context:
        rest.pop()
    if count is not None and not 1 <= count <= len(rest):
        raise ValueError(f"data.images is {count!r}; expected 1 to {len(rest)} questions, those that are not held out")
    return rest[:count], held


def dev_questions(data: QuestionSettings, tokenizer: Any, config: Any) -> QuestionSet:
    """Return the questions that `data` tests on."""
    check_tokenizer(tokenizer, config, max_length=data.max_length)
    return question_set(data.load()[1], tokenizer, data)


def question_set(questions: list[Question], tokenizer: Any, data: QuestionSettings) -> QuestionSet:
    windows = make_windows(questions, tokenizer, max_length=data.max_length, stride=data.stride, offsets=True)
    return QuestionSet(questions, windows)


def score(questions: QuestionSet, answer: AnswerWindows, track: Track = untracked) -> dict[str, float]:
    """Return exact match and F1 in per cent of the answers that `answer` marks, by all processes together."""
    rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    windows = questions.windows
    lengths, size = windows.lengths, min(WINDOWS_AT_ONCE, len(windows))
    batches = eval_windows(windows, size, turn=rank(), turns=world())
    for numbers, batch in track(batches, -(-len(windows) // (size * world()))):
        logits = answer(batch).float().cpu().numpy()
        rows |= {
            i: (start[: lengths[i]], end[: lengths[i]])
            for i, (start, end) in zip(numbers.tolist(), logits, strict=True)
        }
    all_rows: dict[int, tuple[np.ndarray, np.ndarray]] = {}
    for part in gathered(rows):
        all_rows |= part
    ordered = [all_rows[i] for i in range(len(windows))]
    starts, ends = [start for start, _ in ordered], [end for _, end in ordered]
    answers = best_answers(windows, questions.questions, starts, ends)
    exact, f1 = exact_match_and_f1(answers, questions.questions)
    return {"exact_match": exact, "f1": f1}


def answer_by(model: nn.Module, device: torch.device) -> AnswerWindows:
    """Return a function that answers by `model`, in its present mode, on `device`."""
    task = SpanExtraction()

    def answer(batch: dict[str, Tensor]) -> Tensor:
        with torch.no_grad():
            return task.logits(model, on_device(batch, device))

    return answer


def _inputs(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values for name, values in batch.items() if name not in SpanExtraction.LABELS}


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    return {name: values.to(device, non_blocking=True) for name, values in batch.items()}
