"""Reading SQuAD from files and from rows of the hub: questions that are left out, damaged entries that are named."""

import json
import re

import pytest

from spequant.data.squad import DEV_FILE, TRAIN_FILE, Question, from_rows, load_squad, read_squad
from support.tokenizer import entry, file_of


def row_of(*entries, context="the king of stone"):
    return [
        {
            "id": item["id"],
            "title": "Kings",
            "context": context,
            "question": item["question"],
            "answers": {name: [a[name] for a in item["answers"]] for name in ("text", "answer_start")},
        }
        for item in entries
    ]


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def test_a_file_and_rows_of_the_hub_give_the_same_questions(tmp_path):
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


def test_answers_for_evaluation_need_only_a_text():
    rows = row_of(entry("a", start=0), entry("b", start=-7))
    del rows[1]["answers"]["answer_start"]
    read = from_rows(rows, answered=False, source="rows")
    assert [(question.answers, question.starts) for question in read] == [(("king",), (0,)), (("king",), (-1,))]


def test_unusable_questions_are_left_out_and_counted(tmp_path):
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
    for pattern in (
        r"x\.json: 2 questions ",
        r" 1 [^;]*empty question \(blank\)",
        r" 6 [^;]*answer_start \(moved0, moved1, moved2 and 3 more\)",
        r" 1 [^;]*id [^;]*\(good\)",
        r" 1 [^;]*surrogate [^;]*\(half\)",
        r" 1 kept [^;]*answer_start [^;]*\(two\)",
    ):
        assert re.search(pattern, message), pattern
    with pytest.warns(UserWarning, match=r"7 questions .*: 1 with an empty question.*\(blank\).* 1 without .*\(n"):
        assert len(read_squad(path, answered=False)) == 7
    with (
        pytest.warns(UserWarning, match="with an empty context"),
        pytest.raises(ValueError, match=r"x\.json holds no question"),
    ):
        read_squad(write(path, file_of(entry(), context=" ")))
    with pytest.raises(ValueError, match="rows holds no question"):
        from_rows([], source="rows")


def wrong(name, value):
    item = entry()
    if name in ("text", "answer_start"):
        item["answers"][0][name] = value
    else:
        item[name] = value
    return file_of(item)


PLACE = r"x\.json, article 'Kings', paragraph 0, question 0"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"x\.json is no JSON \(Expecting"),
        ("[" * 100_000, r"x\.json is no JSON"),
        ([], r"x\.json is \[\]; .*data, a list"),
        ({"version": "1.1"}, r"x\.json: data is missing; expected a list"),
        ({"data": {"a": 1}}, r"x\.json: data is \{'a': 1\}; expected a list"),
        ({"data": [3]}, r"x\.json, article 0 is 3; .*paragraphs, a list"),
        ({"data": [{"title": "Kings"}]}, r"article 'Kings': paragraphs is missing"),
        ({"data": [{"paragraphs": [{"qas": []}]}]}, r"article 0, paragraph 0: context is missing; expected a string"),
        ({"data": [{"paragraphs": [{"context": "x"}]}]}, r"article 0, paragraph 0: qas is missing"),
        (file_of("what"), rf"{PLACE} is 'what'; .*answers, a list"),
        (wrong("id", None), rf"{PLACE}: id is missing; expected a string"),
        (wrong("id", 7), rf"{PLACE}: id is 7; expected a string"),
        (wrong("question", None), rf"{PLACE} \(id 'q1'\): question is missing"),
        (wrong("question", ["x" * 99]), rf"{PLACE} \(id 'q1'\): question is \['x{{58}}\.\.\.; expected a string"),
        (wrong("answers", None), rf"{PLACE} \(id 'q1'\): answers is missing; expected a list"),
        (wrong("answers", ["x"]), rf"{PLACE} \(id 'q1'\): answers is \['x'\]; expected a list"),
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
    with pytest.raises(ValueError, match=r"rows, row 1 is 'x'; expected .*id"):
        from_rows([*row_of(entry()), "x"], source="rows")
    (tmp_path / "x.json").write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"x\.json is no JSON .*utf-8"):
        read_squad(tmp_path / "x.json")


@pytest.mark.parametrize("below", ["squad", "."])
def test_both_files_are_found_below_the_root(tmp_path, below):
    (tmp_path / below).mkdir(exist_ok=True)
    write(tmp_path / below / TRAIN_FILE, file_of(entry()))
    with pytest.raises(FileNotFoundError, match=rf"{DEV_FILE} does not exist; .*SPEQUANT_DATA or --data\.root"):
        load_squad(tmp_path)
    write(tmp_path / below / DEV_FILE, file_of(entry(start=0)))
    train, dev = load_squad(tmp_path, download=True)
    assert (train[0].starts, dev[0].starts) == ((4,), (0,))


def test_the_hub_is_asked_only_with_download(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=rf"squad/{TRAIN_FILE} does not exist; .*or with data\.download"):
        load_squad(tmp_path)
    with pytest.raises(ValueError, match=r"data\.root is not set; .*SPEQUANT_DATA.*data\.download"):
        load_squad(None)
    datasets = pytest.importorskip("datasets")
    calls = []

    def load_dataset(name, cache_dir):
        calls.append((name, cache_dir))
        if len(calls) == 3:
            raise ConnectionError("no route")
        return {"train": row_of(entry()), "validation": row_of(entry(start=0))}

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_squad(tmp_path, download=True) == load_squad(None, download=True)
    assert calls == [("rajpurkar/squad", str(tmp_path)), ("rajpurkar/squad", None)]
    with pytest.raises(OSError, match=rf"rajpurkar/squad .*\(no route\); .*{TRAIN_FILE} and {DEV_FILE}"):
        load_squad(tmp_path, download=True)


def test_the_whole_set_is_read(squad_data):
    train, dev = load_squad(squad_data)
    assert len(train) == 87_599 and len(dev) == 10_570
    assert {len(question.answers) for question in train} == {1} and min(len(q.answers) for q in dev) >= 1
    first = train[0]
    assert first.question.startswith("To whom did") and first.answers == ("Saint Bernadette Soubirous",)
    assert first.context[first.starts[0] :].startswith(first.answers[0])
