from __future__ import annotations

import pytest

from tests.lineage.kinship import levels
from tests.tiny import bert_like, write_model


@pytest.fixture
def filled(hilm, house):
    base = bert_like(1, layers=2)
    write_model(house / "coarse", levels(base))
    write_model(house / "twin", base)
    assert hilm("index", "base", "tuned", "stranger", "coarse", "twin").code == 0
    return hilm


def test_the_tree_as_text(filled, house):
    ran = filled("lineage", "--picture", "tree.png")
    lines = ran.out.splitlines()
    assert any("─→ coarse  quantized, 8 bits" in line for line in lines)
    assert any("── tuned  fine-tune" in line for line in lines)
    assert any(line.startswith("stranger  ") for line in lines)
    assert "direction not shown" in ran.out
    assert (house / "tree.png").read_bytes().startswith(b"\x89PNG")
    assert "stranger" not in filled("lineage", "tuned").out


def test_nothing_to_draw(hilm):
    assert "nothing in this store" in hilm("lineage").out
    assert "nothing is there twice" in hilm("dedupe").out


def test_what_is_there_twice(filled):
    ran = filled("dedupe")
    assert "base = twin" in ran.out
    assert "tuned" in ran.out
    assert "only differences" in ran.out
    assert filled("dedupe", "--json").document["exact_bytes"] > 0
