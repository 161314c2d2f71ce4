"""Questions as windows of tokens, held flat, and batches of them. A context too long for the network is read in several
windows that overlap; each is labelled with the tokens of the answer, or with [CLS] where it does not hold all of it.

The order of training is arithmetic: it follows from (seed, epoch), not from a position in a stream.
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

from spequant.data.squad import Question
from spequant.names import some_of

EVERYTHING = slice(None)
CHUNK = 1000  # questions tokenised at a time: the tokenizer's lists take far more memory than the arrays made of them
SORTED = 50  # batches whose windows are sorted by length together: near lengths, and still other neighbours each epoch

Tokenizer = Any
"""transformers' PreTrainedTokenizerFast"""

Batch = dict[str, Tensor]


@dataclass(frozen=True, eq=False)
class Windows:
    """Window i is tokens[bounds[i] : bounds[i + 1]], of question number question[i].

    types: token_type_ids, where the network takes them. starts, ends: tokens of the window, first and last of the first
    answer; those of [CLS] where the window does not hold the whole answer. offsets: first character and the one after
    the last, in the context; -1 for what is not of the context; None where nobody asked for them.
    questions: how many there were to be read, with those that were left out.
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
        return np.diff(self.bounds)

    def part(self, n: int) -> "Windows":
        """The windows of the first `n` questions."""
        if not 1 <= n <= self.questions:
            raise ValueError(f"n is {n!r}; expected 1 to {self.questions}, the number of questions")
        last = int(np.searchsorted(self.question, n))
        if last == 0:
            raise ValueError(f"n is {n!r}, and none of as many questions has a window; expected more questions")
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
    """ValueError: the tokenizer is not one of those that `make_windows` takes, or the network of `config`
    (transformers') does not know all of its tokens, or not as many as `max_length` at a time."""
    _check_kind(tokenizer)
    known = getattr(config, "vocab_size", None)
    if known is None or len(tokenizer) > known:
        raise ValueError(
            f"tokenizer has {len(tokenizer)} tokens, the network's vocab_size is {known}; expected {len(tokenizer)} or "
            "more: give the tokenizer that the network was trained with"
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
    """Question and context as the tokenizer joins them, in windows of at most `max_length` tokens.

    stride: tokens of the context that a window shares with the next. offsets: keep them, as `best_answers` needs.
    A question that leaves no room for more than `stride` tokens of context is left out, with a warning that counts.
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
            f"stride is {stride!r}; expected 0 to {max_length - specials - 2}, less than max_length leaves beside a "
            "question"
        )
    parts, long = [], []
    for begin in range(0, len(questions), CHUNK):
        chunk = questions[begin : begin + CHUNK]
        texts = [question.question.lstrip() for question in chunk]
        alone = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
        # Found by its length beforehand: the tokenizer would refuse the whole chunk.
        fits = [max_length - specials - len(ids) > stride for ids in alone]
        long += [question.id for question, fit in zip(chunk, fits, strict=True) if not fit]
        if any(fits):
            chosen = [question for question, fit in zip(chunk, fits, strict=True) if fit]
            parts.append(_encoded(chosen, begin + np.flatnonzero(fits), tokenizer, max_length, stride))
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
    return _joined(parts, len(questions), tokenizer, max_length, offsets)


def _check_kind(tokenizer: Tokenizer) -> None:
    name = type(tokenizer).__name__
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"tokenizer is a {name}, which is not fast; expected one that tells offsets (is_fast)")
    for token in ("cls_token", "pad_token"):
        if getattr(tokenizer, token, None) is None:
            raise ValueError(f"tokenizer is a {name} without {token}; expected one of BERT's kind, or set it")
    if tokenizer.cls_token_id not in tokenizer("", "")["input_ids"]:
        raise ValueError(
            f"tokenizer is a {name} that puts no {tokenizer.cls_token} (cls_token) beside two texts; expected one of "
            "BERT's kind: it labels a window without the answer"
        )


def _encoded(
    questions: list[Question], numbers: np.ndarray, tokenizer: Tokenizer, max_length: int, stride: int
) -> dict[str, np.ndarray]:
    """`Windows`' arrays of one chunk; lengths in place of bounds. numbers: of the questions."""
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
    lengths = np.array([len(one) for one in ids], np.int64)
    labels = np.empty((len(ids), 2), np.int64)
    for i, (sample, end) in enumerate(zip(samples, np.cumsum(lengths), strict=True)):
        segments = encoded.sequence_ids(i)
        first = segments.index(1) if 1 in segments else 0
        last = first + segments.count(1)
        here = offsets[end - lengths[i] : end]
        here[:first] = here[last:] = -1
        # In a window's text [CLS] may stand as well, where it belongs to a segment.
        cls = next(j for j, token in enumerate(ids[i]) if token == tokenizer.cls_token_id and segments[j] is None)
        span = _span(here[first:last], questions[sample])
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
    """First and last token of the first answer, among tokens of the context; None where it is not wholly inside."""
    if not len(offsets) or not question.answers or question.starts[0] < 0:
        return None
    answer = question.answers[0]  # without its outer white space, which no token may hold
    begin = question.starts[0] + len(answer) - len(answer.lstrip())
    end = begin + len(answer.strip())
    if offsets[:, 0].min() > begin or offsets[:, 1].max() < end:
        return None
    first, last = np.flatnonzero(offsets[:, 1] > begin), np.flatnonzero(offsets[:, 0] < end)
    return (int(first[0]), int(last[-1])) if first[0] <= last[-1] else None


def _joined(
    parts: list[dict[str, np.ndarray]], questions: int, tokenizer: Tokenizer, max_length: int, offsets: bool
) -> Windows:
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0] if name != "offsets"}
    return Windows(
        tokens=whole["tokens"],
        types=whole.get("types"),
        bounds=np.concatenate([[0], np.cumsum(whole["lengths"])]),
        starts=whole["starts"],
        ends=whole["ends"],
        question=whole["question"],
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
    """input_ids, attention_mask, token_type_ids (where the network takes them), start_positions, end_positions, int64,
    ordered by (seed, epoch), from step `start` on; no short last batch. A batch's windows are of near length.

    part: the slice of each batch that one of several processes takes, padded as the whole batch is.
    multiple: of tokens, that a batch is padded to, max_length at most; few lengths are few graphs for a compiler.
    """
    _check_batches(windows, batch_size, multiple)
    if start < 0:
        raise ValueError(f"start is {start!r}; expected 0 or more steps")
    rng = np.random.default_rng((seed, epoch))
    steps = len(windows) // batch_size
    # What does not fill a batch is dropped before sorting: afterwards it would always be the longest.
    order = rng.permutation(len(windows))[: steps * batch_size]
    lengths = windows.lengths
    group = SORTED * batch_size
    groups = [order[i : i + group] for i in range(0, len(order), group)]
    by_length = np.concatenate([one[np.argsort(lengths[one], kind="stable")] for one in groups])
    batches = by_length.reshape(steps, batch_size)[rng.permutation(steps)]
    for chosen in batches[start:]:
        width = _width(windows, lengths[chosen], multiple)
        mine = chosen[part]
        batch = _padded(windows, mine, width)
        batch["start_positions"] = torch.from_numpy(windows.starts[mine])
        batch["end_positions"] = torch.from_numpy(windows.ends[mine])
        yield batch


def eval_windows(
    windows: Windows, batch_size: int, multiple: int = 32, turn: int = 0, turns: int = 1
) -> Iterator[tuple[Int64[Tensor, "batch"], Batch]]:
    """(numbers of the windows, input_ids, attention_mask, token_type_ids where the network takes them), everything
    once, the longest first: memory that does not suffice shows at once; the last batch may be short.

    turn, turns: every `turns`-th batch from number `turn` on, so that as many processes share the work.
    """
    _check_batches(windows, batch_size, multiple)
    if not 0 <= turn < turns:
        raise ValueError(f"turn is {turn!r} of {turns!r} turns; expected 0 to turns - 1")
    lengths = windows.lengths
    order = np.argsort(-lengths, kind="stable")
    for start in range(0, len(order), batch_size)[turn::turns]:
        chosen = order[start : start + batch_size]
        yield torch.from_numpy(chosen), _padded(windows, chosen, _width(windows, lengths[chosen], multiple))


def _check_batches(windows: Windows, batch_size: int, multiple: int) -> None:
    if not 1 <= batch_size <= len(windows):
        raise ValueError(f"batch_size is {batch_size!r}; expected 1 to {len(windows)}, the number of windows")
    if multiple < 1:
        raise ValueError(f"multiple is {multiple!r}; expected 1 or more tokens")


def _width(windows: Windows, lengths: np.ndarray, multiple: int) -> int:
    return min(-(-int(lengths.max()) // multiple) * multiple, windows.max_length)


def _padded(windows: Windows, chosen: np.ndarray, width: int) -> Batch:
    """On the right, whatever side the tokenizer pads: the labels count from the left."""
    begin, end = windows.bounds[chosen, None], windows.bounds[chosen + 1, None]
    places = begin + np.arange(width)
    inside = places < end
    places = np.where(inside, places, 0)
    batch = {
        "input_ids": np.where(inside, windows.tokens[places], windows.pad),
        "attention_mask": inside,
    }
    if windows.types is not None:
        batch["token_type_ids"] = np.where(inside, windows.types[places], windows.pad_type)
    return {name: torch.from_numpy(values.astype(np.int64)) for name, values in batch.items()}
