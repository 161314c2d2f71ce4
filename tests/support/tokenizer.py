"""Small tokenizers of BERT's kind, and SQuAD files of a few words. transformers is imported when one is made."""

import pytest

WORDS = [
    "who",
    "built",
    "the",
    "bridge",
    "river",
    "old",
    "town",
    "##s",
    "king",
    "##ed",
    "stone",
    "war",
    "year",
    "build",
]


VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS, "##ers", "-", ",", "$", "1", "12"]


INPUTS = ["input_ids", "token_type_ids", "attention_mask"]


SPECIALS = {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "[PAD]", "unk_token": "[UNK]"}


def small_tokenizer(vocabulary=VOCABULARY, **given):
    """BERT's: lower case, WordPiece, [CLS] question [SEP] context [SEP]; the test is skipped without transformers."""
    transformers, tokenizers = pytest.importorskip("transformers"), pytest.importorskip("tokenizers")
    known = {word: i for i, word in enumerate(vocabulary)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordPiece(known, unk_token="[UNK]"))
    inner.normalizer = tokenizers.normalizers.BertNormalizer(lowercase=True)
    inner.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    inner.post_processor = tokenizers.processors.BertProcessing(("[SEP]", known["[SEP]"]), ("[CLS]", known["[CLS]"]))
    inner.decoder = tokenizers.decoders.WordPiece()
    given = {**SPECIALS, "model_input_names": INPUTS, "model_max_length": 64, **given}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **given)


def trained_tokenizer(texts, words=8000, **given):
    """The same, its vocabulary of `words` learned from `texts`."""
    tokenizers = pytest.importorskip("tokenizers")
    learned = tokenizers.BertWordPieceTokenizer()
    learned.train_from_iterator(texts, vocab_size=words, show_progress=False)
    return small_tokenizer(sorted(learned.get_vocab(), key=learned.token_to_id), **given)


def entry(id="q1", question="Who?", text="king", start=4):
    return {"id": id, "question": question, "answers": [{"text": text, "answer_start": start}]}


def file_of(*entries, context="the king of stone"):
    return {"version": "1.1", "data": [{"title": "Kings", "paragraphs": [{"context": context, "qas": list(entries)}]}]}
