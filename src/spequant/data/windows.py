"""Questions as windows of tokens, and their batches.

A context that is too long for the network is split into windows that overlap. The label of a window is the first and
last token of the answer, or [CLS] twice if the window does not contain the whole answer. The order in training depends
only on (seed, epoch), so that training can resume at any step.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from jaxtyping import Int32, Int64, UInt8
from torch import Tensor

from spequant.data.images import EVERYTHING
from spequant.data.squad import Question
from spequant.names import some_of

QUESTIONS_PER_CHUNK = 1000
"""Questions that are tokenised at a time: the tokenizer's lists take much more memory than the arrays."""
BATCHES_PER_SORT = 50
"""Batches whose windows are sorted by length together. In a batch lengths are similar, but each epoch mixes it anew."""

Tokenizer = Any
"""transformers' PreTrainedTokenizerFast"""

Batch = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Windows:
    """Windows in flat arrays: window i is tokens[bounds[i] : bounds[i + 1]].

    Attributes:
        tokens: Token ids of all windows.
        types: token_type_ids, or None if the tokenizer does not return them.
        bounds: First token of each window, and the number of tokens.
        starts, ends: First and last token of the first answer, counted from the start of the window; the position of
            [CLS] if the window does not contain the whole answer.
        question: Number of the question of each window.
        offsets: First character of each token in the context, and the character after its last; -1 for tokens outside
            the context. None if `make_windows` did not keep them.
        questions: Number of questions, including those without a window.
        pad, pad_type: Token id and token_type_id of padding.
        max_length: Largest number of tokens per window.
    """

    tokens: Int32[np.ndarray, "tokens"]
    types: UInt8[np.ndarray, "tokens"] | None
    bounds: Int64[np.ndarray, "windows_and_one"]
    starts: Int64[np.ndarray, "windows"]
    ends: Int64[np.ndarray, "windows"]
    question: Int64[np.ndarray, "windows"]
    offsets: Int32[np.ndarray, "tokens 2"] | None
    questions: int
    pad: int
    pad_type: int
    max_length: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def lengths(self) -> Int64[np.ndarray, "windows"]:
        """Number of tokens per window."""
        return np.diff(self.bounds)

    def part(self, n: int) -> "Windows":
        """Return the windows of the first `n` questions.

        Raises:
            ValueError: `n` is out of range, or none of these questions has a window.
        """
        if not 1 <= n <= self.questions:
            raise ValueError(f"n is {n!r}; expected 1 to {self.questions}, the number of questions")
        last = int(np.searchsorted(self.question, n))
        if last == 0:
            raise ValueError(f"n is {n!r}, and none of the first {n} questions has a window; expected more questions")
        end = int(self.bounds[last])
        return replace(
            self,
            tokens=self.tokens[:end],
            types=None if self.types is None else self.types[:end],
            bounds=self.bounds[: last + 1],
            starts=self.starts[:last],
            ends=self.ends[:last],
            question=self.question[:last],
            offsets=None if self.offsets is None else self.offsets[:end],
            questions=n,
        )


def check_tokenizer(tokenizer: Tokenizer, config: Any, *, max_length: int | None = None) -> None:
    """Check that a tokenizer fits a network.

    Args:
        tokenizer: The tokenizer.
        config: The network's configuration in transformers.
        max_length: Tokens per window; None: not checked.

    Raises:
        ValueError: `make_windows` cannot use the tokenizer, the tokenizer has more tokens than the network, or the
            network reads fewer than `max_length` tokens at a time.
    """
    _check_kind(tokenizer)
    vocab_size = getattr(config, "vocab_size", None)
    if vocab_size is None or len(tokenizer) > vocab_size:
        raise ValueError(
            f"tokenizer has {len(tokenizer)} tokens, the network's vocab_size is {vocab_size}; expected "
            f"{len(tokenizer)} or more: give the tokenizer that the network was trained with"
        )
    positions = getattr(config, "max_position_embeddings", None)
    if max_length is not None and positions is not None and max_length > positions:
        raise ValueError(
            f"max_length is {max_length}; expected at most {positions}, the network's max_position_embeddings"
        )


def make_windows(
    questions: Sequence[Question],
    tokenizer: Tokenizer,
    *,
    max_length: int = 384,
    stride: int = 128,
    offsets: bool = False,
) -> Windows:
    """Tokenise questions with their contexts, in windows of at most `max_length` tokens.

    A question is left out if it leaves room for at most `stride` tokens of context; a warning counts these questions.

    Args:
        questions: The questions.
        tokenizer: A fast tokenizer of transformers with [CLS] and padding tokens, like BERT's.
        max_length: Largest number of tokens per window, including the question and special tokens.
        stride: Tokens of the context that a window shares with the next one, 0 or more.
        offsets: Whether to keep the positions of tokens in the text, which `best_answers` needs.

    Raises:
        ValueError: A number is out of range, the tokenizer is of another kind, or no question has a window.
    """
    _check_kind(tokenizer)
    specials = tokenizer.num_special_tokens_to_add(pair=True)
    if not specials + 2 <= max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length is {max_length!r}; expected {specials + 2} to {tokenizer.model_max_length}, the tokenizer's "
            "model_max_length"
        )
    if not 0 <= stride < max_length - specials - 1:
        raise ValueError(
            f"stride is {stride!r}; expected 0 to {max_length - specials - 2}, less than the room for context "
            "next to a question of one token"
        )
    parts, long = [], []
    for begin in range(0, len(questions), QUESTIONS_PER_CHUNK):
        chunk = questions[begin : begin + QUESTIONS_PER_CHUNK]
        texts = [question.question.lstrip() for question in chunk]
        question_ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        # Long questions are removed before, because the tokenizer would refuse the whole chunk.
        fits = [max_length - specials - len(ids) > stride for ids in question_ids]
        long += [question.id for question, fit in zip(chunk, fits, strict=True) if not fit]
        if any(fits):
            short = [question for question, fit in zip(chunk, fits, strict=True) if fit]
            parts.append(_encode(short, begin + np.flatnonzero(fits), tokenizer, max_length, stride))
    if long:
        warnings.warn(
            f"{len(long)} of {len(questions)} questions leave no room for more than {stride} tokens (stride) of their "
            f"context in {max_length} (max_length) and are left out: {some_of(long)}",
            stacklevel=2,
        )
    if not parts:
        raise ValueError(
            f"none of {len(questions)} questions has a window; expected one or more questions with fewer than "
            f"{max_length - specials - stride} tokens: read other questions, or raise max_length"
        )
    return _join(parts, len(questions), tokenizer, max_length, offsets)


def _check_kind(tokenizer: Tokenizer) -> None:
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"tokenizer is a {name}, which is not fast; expected one that returns offsets (is_fast)")
    for token in ("cls_token", "pad_token"):
        if getattr(tokenizer, token, None) is None:
            raise ValueError(f"tokenizer is a {name} without {token}; expected one like BERT's, or set it")
    if tokenizer.cls_token_id not in tokenizer("", "")["input_ids"]:
        raise ValueError(
            f"tokenizer is a {name} that adds no {tokenizer.cls_token} (cls_token) to two texts; expected one like "
            "BERT's: [CLS] is the label of a window without the answer"
        )


def _encode(
    questions: list[Question], numbers: np.ndarray, tokenizer: Tokenizer, max_length: int, stride: int
) -> dict[str, np.ndarray]:
    """Return the arrays of `Windows` for a chunk, with lengths in place of bounds; `numbers` are the questions'."""
    encoded = tokenizer(
        [question.question.lstrip() for question in questions],
        [question.context for question in questions],
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
        return_token_type_ids=_takes_types(tokenizer),
    )
    ids, samples = encoded["input_ids"], encoded["overflow_to_sample_mapping"]
    offsets = np.array(list(chain.from_iterable(encoded["offset_mapping"])), np.int32)
    lengths = np.array([len(window) for window in ids], np.int64)
    labels = np.empty((len(ids), 2), np.int64)
    for i, (sample, end) in enumerate(zip(samples, np.cumsum(lengths), strict=True)):
        segments = encoded.sequence_ids(i)
        first = segments.index(1) if 1 in segments else 0
        last = first + segments.count(1)
        window_offsets = offsets[end - lengths[i] : end]
        window_offsets[:first] = window_offsets[last:] = -1
        # The text can contain [CLS], too, which then belongs to a segment.
        cls = next(j for j, token in enumerate(ids[i]) if token == tokenizer.cls_token_id and segments[j] is None)
        span = _span(window_offsets[first:last], questions[sample])
        labels[i] = (cls, cls) if span is None else (first + span[0], first + span[1])
    arrays = {
        "tokens": np.fromiter(chain.from_iterable(ids), np.int32),
        "lengths": lengths,
        "starts": labels[:, 0],
        "ends": labels[:, 1],
        "question": numbers[np.array(samples)].astype(np.int64),
        "offsets": offsets,
    }
    if _takes_types(tokenizer):
        arrays["types"] = np.fromiter(chain.from_iterable(encoded["token_type_ids"]), np.uint8)
    return arrays


def _takes_types(tokenizer: Tokenizer) -> bool:
    return "token_type_ids" in tokenizer.model_input_names


def _span(offsets: np.ndarray, question: Question) -> tuple[int, int] | None:
    """Return the first and last token of the first answer, or None if the tokens do not contain all of it.

    `offsets` are those of the window's tokens of context.
    """
    if not len(offsets) or not question.answers or question.starts[0] < 0:
        return None
    answer = question.answers[0]  # white space at its ends may belong to no token
    begin = question.starts[0] + len(answer) - len(answer.lstrip())
    end = begin + len(answer.strip())
    if offsets[:, 0].min() > begin or offsets[:, 1].max() < end:
        return None
    first, last = np.flatnonzero(offsets[:, 1] > begin), np.flatnonzero(offsets[:, 0] < end)
    return (int(first[0]), int(last[-1])) if first[0] <= last[-1] else None


def _join(
    parts: list[dict[str, np.ndarray]], questions: int, tokenizer: Tokenizer, max_length: int, offsets: bool
) -> Windows:
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "offsets"}
    return Windows(
        tokens=arrays["tokens"],
        types=arrays.get("types"),
        bounds=np.concatenate([[0], np.cumsum(arrays["lengths"])]),
        starts=arrays["starts"],
        ends=arrays["ends"],
        question=arrays["question"],
        offsets=np.concatenate([part["offsets"] for part in parts]) if offsets else None,
        questions=questions,
        pad=tokenizer.pad_token_id,
        pad_type=tokenizer.pad_token_type_id,
        max_length=max_length,
    )


def train_windows(
    windows: Windows,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start: int = 0,
    part: slice = EVERYTHING,
    multiple: int = 32,
) -> Iterator[Batch]:
    """Yield the training batches of an epoch, without a shorter last batch; windows of a batch have similar lengths.

    Args:
        windows: The windows of the training questions.
        batch_size: Windows per batch, over all processes.
        seed, epoch: The order depends only on these.
        start: First step that is yielded, 0 or more.
        part: The slice of each batch that this process takes; it has the length of the full batch.
        multiple: Batches are padded to a multiple of this many tokens, at most to `max_length`. A compiler needs one
            graph per length.

    Yields:
        {name: int64 tensor}: input_ids, attention_mask and, if `windows` has types, token_type_ids, (batch, length)
        each; start_positions and end_positions, (batch,) each.

    Raises:
        ValueError: A number is out of range.
    """
    _check_batches(windows, batch_size, multiple)
    if start < 0:
        raise ValueError(f"start is {start!r}; expected 0 or more steps")
    rng = np.random.default_rng((seed, epoch))
    steps = len(windows) // batch_size
    # The rest that does not fill a batch is dropped before sorting. After it, these would always be the longest.
    order = rng.permutation(len(windows))[: steps * batch_size]
    lengths = windows.lengths
    group = BATCHES_PER_SORT * batch_size
    groups = [order[i : i + group] for i in range(0, len(order), group)]
    by_length = np.concatenate([indices[np.argsort(lengths[indices], kind="stable")] for indices in groups])
    batches = by_length.reshape(steps, batch_size)[rng.permutation(steps)]
    for indices in batches[start:]:
        width = _width(windows, lengths[indices], multiple)
        indices = indices[part]
        batch = _pad(windows, indices, width)
        batch["start_positions"] = torch.from_numpy(windows.starts[indices])
        batch["end_positions"] = torch.from_numpy(windows.ends[indices])
        yield batch


def eval_windows(
    windows: Windows, batch_size: int, multiple: int = 32, turn: int = 0, turns: int = 1
) -> Iterator[tuple[Int64[Tensor, "batch"], Batch]]:
    """Yield all windows once, the longest first, so that a lack of memory shows at once; the last batch can be shorter.

    Args:
        windows: The windows.
        batch_size: Windows per batch.
        multiple: As in `train_windows`.
        turn, turns: Only every `turns`-th batch is yielded, from number `turn` on, so that `turns` processes can share
            the windows.

    Yields:
        (indices, batch): indices of the windows, int64 (batch,), and their input_ids, attention_mask and, if `windows`
        has types, token_type_ids, int64 (batch, length) each.

    Raises:
        ValueError: A number is out of range.
    """
    _check_batches(windows, batch_size, multiple)
    if not 0 <= turn < turns:
        raise ValueError(f"turn is {turn!r} of {turns!r} turns; expected 0 to turns - 1")
    lengths = windows.lengths
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size)[turn::turns]:
        indices = order[start : start + batch_size]
        yield torch.from_numpy(indices), _pad(windows, indices, _width(windows, lengths[indices], multiple))


def _check_batches(windows: Windows, batch_size: int, multiple: int) -> None:
    if not 1 <= batch_size <= len(windows):
        raise ValueError(f"batch_size is {batch_size!r}; expected 1 to {len(windows)}, the number of windows")
    if multiple < 1:
        raise ValueError(f"multiple is {multiple!r}; expected 1 or more tokens")


def _width(windows: Windows, lengths: np.ndarray, multiple: int) -> int:
    return min(-(-int(lengths.max()) // multiple) * multiple, windows.max_length)


def _pad(windows: Windows, indices: np.ndarray, width: int) -> Batch:
    """Return windows padded on the right, whatever side the tokenizer pads: labels count from the left."""
    begin, end = windows.bounds[indices, None], windows.bounds[indices + 1, None]
    positions = begin + np.arange(width)
    inside = positions < end
    positions = np.where(inside, positions, 0)
    batch = {
        "input_ids": np.where(inside, windows.tokens[positions], windows.pad),
        "attention_mask": inside,
    }
    if windows.types is not None:
        batch["token_type_ids"] = np.where(inside, windows.types[positions], windows.pad_type)
    return {name: torch.from_numpy(values.astype(np.int64)) for name, values in batch.items()}
