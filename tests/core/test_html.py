"""Tables for notebooks."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import featcache as fc
from featcache.core.html import html_table
from tests.store.making import fill


class Texts(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def parsed(html: str) -> Texts:
    parser = Texts()
    parser.feed(html)
    return parser


def test_names_from_a_store_are_text_never_markup():
    found = parsed(html_table("<b>", {"<script>": "<img src=x>", "list": ["<i>"] * 12, "part": {"p": 0.123456}}))
    assert set(found.tags) == {"table", "caption", "tr", "th", "td", "br"}
    assert {"<b>", "<script>", "<img src=x>", "<i>", "… 2 more", "0.1235"} <= set(found.texts)


def test_a_store_and_a_report_show_what_they_hold(tmp_path: Path) -> None:
    fill(tmp_path / "s.fcache", 7)
    store = fc.open(tmp_path / "s.fcache")
    assert {"items", "7", "pooled"} <= set(parsed(store._repr_html_()).texts)
    assert {"VerifyReport", "rows", "7"} <= set(parsed(store.verify()._repr_html_()).texts)
