"""What a study writes: a page that stands alone, in a browser, too; tables whose small numbers keep their digits."""

import html
import math
import sys
from html.parser import HTMLParser

import pytest

from spequant.app.studies.page import StudyReport, in_cell, write_report
from support.chromium import chromium, opened
from support.study_files import rows_of


class Outside(HTMLParser):
    def __init__(self):
        super().__init__()
        self.addresses, self.tags, self.attributes = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [k for k, _ in attrs]
        self.addresses += [v for k, v in attrs if k in ("src", "href")]


def test_small_numbers_keep_their_digits():
    numbers = (75.0, 0.4, 0.0996, 0.0018, -0.05, 0.0, 1e-9, math.nan, None, 3)
    assert [in_cell(x) for x in numbers] == ["75.00", "0.40", "0.10", "0.0018", "-0.05", "0.00", "0.00", "", "", "3"]


def test_a_page_stands_alone_and_escapes(tmp_path):
    rows = [{"arm": "<script>alert(1)</script>|", "x": 1.234, "n": None, "command": "a 'b|c'"}]
    write_report(
        StudyReport("A < B & C", "about <it>", rows, lambda f: f.subplots().plot([1, 2]), {"torch": "<2>"}),
        tmp_path,
        "a",
    )
    page = Outside()
    page.feed((tmp_path / "a.html").read_text())
    assert page.addresses and all(a.startswith("data:") for a in page.addresses)
    assert "script" not in page.tags and {"table", "img", "ul"} <= set(page.tags)
    assert page.tags.count("details") == 2 and "open" not in page.attributes  # the command, and the facts, are folded
    assert "1.23" in (tmp_path / "a.html").read_text() and "\\|" in (tmp_path / "a.md").read_text()
    assert rows_of(tmp_path, "a") == [{"arm": rows[0]["arm"], "x": "1.234", "n": "", "command": "a 'b|c'"}]


def test_names_of_columns_are_shown_as_they_are(tmp_path):
    """Also those that a table of a page, or a template, would read otherwise; a table without rows is left out."""
    names = ["a|b", "mixed, 1.5", "<i>", "{{ x }}", "length", "items"]
    write_report(StudyReport("t", "a", [dict.fromkeys(names, 0.25)], more={"without rows": []}), tmp_path, "a")
    shown = " | ".join(names).replace("a|b", "a\\|b")
    assert f"| {shown} |\n|{'---|' * 6}\n|{' 0.25 |' * 6}\n" in (tmp_path / "a.md").read_text()
    page = (tmp_path / "a.html").read_text()
    for name in names:
        assert f'<th class="number">{html.escape(name)}</th>' in page
    assert "without rows" not in page and not (tmp_path / "a.png").exists() and "<img" not in page
    assert rows_of(tmp_path, "a") == [dict.fromkeys(names, "0.25")]


def test_a_page_without_jinja_names_the_extra_and_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match=r"jinja2 is not installed: .*'spequant\[report\]'"):
        write_report(StudyReport("t", "a", [{"x": 1}]), tmp_path / "study", "a")
    assert not (tmp_path / "study").exists()


@pytest.mark.skipif(chromium() is None, reason="no Chromium is installed")
def test_a_page_opens_in_chromium_without_an_error(tmp_path):
    wide = {f"column {i}": "a long text " * 5 for i in range(30)}
    write_report(StudyReport("A", "B", [wide] * 60, lambda f: f.subplots().plot([1, 2])), tmp_path, "a")
    read = """[document.querySelector('h1').textContent, document.images.length, document.images[0].naturalWidth > 0,
    document.documentElement.scrollWidth <= innerWidth, document.body.scrollHeight < 3000]"""
    page = opened(tmp_path / "a.html", read)
    assert page.found == ["A", 1, True, True, True] and page.console == []
    assert [address for address in page.requests if not address.startswith("data:")] == [(tmp_path / "a.html").as_uri()]
    (tmp_path / "b.html").write_text("<script>console.error('no'); absent()</script><img src='b.png'>")
    assert len(opened(tmp_path / "b.html", "1").console) == 3  # a page that is not in order is told from one that is
