"""The index from which help and completion come is that of the library."""

import json

from spequant.app.commands.index import FILE, index
from spequant.app.indexing import in_lines, make_index


def test_the_index_is_that_of_the_library():
    assert json.loads(json.dumps(make_index())) == index(), "run python -m spequant.app.indexing"


def test_the_index_has_a_line_per_entry():
    assert FILE.read_text(encoding="utf-8") == in_lines(index(), 3) + "\n"
    assert in_lines({"a": {"b": {"c": [1]}}, "d": 2}, 2) == '{\n"a": {\n"b": {"c": [1]}\n},\n"d": 2\n}'
