from __future__ import annotations

from html.parser import HTMLParser

from hypothesis import given
from hypothesis import strategies as st

import hilm
from hilm.html import Document, Markup, facts, join, table, tag
from hilm.store import Store
from tests.tiny import bert_like, write_model

EVIL = '<script>alert("1")</script>'


class Reader(HTMLParser):
    """Elements and text as a browser sees them."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.attributes, self.text = [], [], ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append(tag)
        self.attributes += attrs

    def handle_data(self, data):
        self.text += data


@given(st.text(), st.text())
def test_text_stays_text(content, attribute):
    seen = Reader(tag("p", content, title=attribute).replace("\r", ""))
    assert seen.elements == ["p"]
    assert len(seen.attributes) == 1
    assert seen.text == content.replace("\r", "")


def test_markup_is_not_escaped_twice():
    assert tag("p", tag("b", "<")) == "<p><b>&lt;</b></p>"
    assert join(["<", Markup("<br>")], " ") == "&lt; <br>"
    assert tag("img", alt="", data_x_=1, class_="c", hidden=None) == '<img alt="" data-x="1" class="c">'


def test_tables_escape_cells_and_mark_numbers():
    written = table(["name", ">size"], [[EVIL, "1"]], caption=EVIL)
    assert Reader(written).elements.count("script") == 0
    assert '<td class="n">1</td>' in written
    assert Reader(facts({EVIL: EVIL})).elements.count("script") == 0


def test_a_document_is_a_dictionary_that_shows_itself():
    rows = [{"model": EVIL, "bytes": 2048, "p_value": 0.0, "details": {}} for _ in range(25)]
    document = Document(query=EVIL, found=True, nothing=None, matches=rows)
    assert document == {"query": EVIL, "found": True, "nothing": None, "matches": rows}
    seen = Reader(document._repr_html_())
    assert "script" not in seen.elements
    assert seen.elements.count("tr") == 3 + 1 + 20
    assert "the first 20 of 25" in seen.text
    assert "2.0 KiB" in seen.text
    assert "< 1e-300" in seen.text


def test_results_show_themselves(tmp_path):
    folder = write_model(tmp_path / "m<b>", bert_like(layers=1, width=32, vocabulary=100))
    store = Store(tmp_path / "store")
    store.index([folder], jobs=1)
    with hilm.open_checkpoint(folder) as checkpoint:
        seen = Reader(checkpoint._repr_html_())
        assert "embeddings.word_embeddings.weight" in seen.text
        assert "b" not in seen.elements
    name = store.list()["models"][0]["model"]
    for result in (store.search(folder), store.list(), store.stats(), store.show(name), hilm.inspect(folder),
                   hilm.diff(folder, folder), store.lineage()):  # fmt: skip
        assert "table" in Reader(result._repr_html_()).elements
