from __future__ import annotations

import click
import pytest

from hilm.cli.searching import compared, found, indexed

MATCHES = [
    {
        "model": "base",
        "score": 0.98765,
        "z": 312.4,
        "p_value": 0.0,
        "relation": "fine-tune",
        "sentence": "q differs from base by training.",
    },
    {"model": "other\x1b", "score": 0.01, "z": None, "p_value": 0.6, "relation": "independent"},
]


def test_search_ranks_matches_with_their_evidence():
    lines = click.unstyle(found({"query": "q", "method": "hybrid", "matches": MATCHES})).splitlines()
    assert lines[0] == "q, by hybrid"
    assert lines[2].split() == ["#", "model", "relation", "score", "z", "p"]
    assert lines[3].split() == ["1", "base", "fine-tune", "0.9877", "312.4", "<", "1e-300"]
    assert lines[4].split() == ["2", "other\ufffd", "independent", "0.0100", "-", "0.6"]
    assert lines[6] == "q differs from base by training."


def test_search_names_the_relative_of_every_component():
    parts = [{"component": "text", "matches": MATCHES[:1]}, {"component": "sight", "matches": []}]
    document = {"query": "q", "method": "hybrid", "matches": MATCHES, "components": parts}
    assert click.unstyle(found(document)).splitlines()[-2:] == [
        "component text: base (fine-tune, p < 1e-300)",
        "component sight: no relative",
    ]


def test_search_without_matches_says_what_to_look_at():
    assert "hilm list" in found({"query": "q", "method": "hybrid", "matches": []})


def test_index_on_a_cluster_that_cannot_be_says_what_to_do(hilm, tmp_path, monkeypatch):
    store = ("--storage-dir", str(tmp_path / "store"), "--json")
    answer = hilm("index", "base", "--ray", "somewhere", *store)
    assert (answer.code, answer.out) == (2, "")
    assert "hint: give host:port, or local" in answer.err
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('no ray', name='ray')")
    monkeypatch.syspath_prepend(tmp_path)
    answer = hilm("index", "base", "--ray", "local", *store)
    assert (answer.code, answer.out) == (4, "")
    assert 'pip install "hilm[cluster]"' in answer.err
    assert not (tmp_path / "store").exists()


def test_index_lists_new_and_known_models():
    document = {"indexed": ["a", {"model": "b"}], "skipped": ["c"], "failed": []}
    assert indexed(document).splitlines() == [
        "2 indexed, 1 already known",
        "  new    a",
        "  new    b",
        "  known  c",
    ]


def pair(name, rel_l2, *, b=None, identical=False):
    return {"a": name, "b": b or name, "cosine": 0.9, "rel_l2": rel_l2, "identical": identical}


def difference(tensors):
    return {
        "relation": "fine-tune",
        "p_value": 1e-40,
        "score": 0.97,
        "sentence": "b is a fine-tune of a.",
        "details": {},
        "tensors": tensors,
    }


def test_diff_puts_the_verdict_first_and_the_most_changed_tensor_next():
    tensors = [
        pair("small", 0.01),
        pair("same", 0.0, identical=True),
        pair("large", 0.5, b="renamed"),
        pair("unmeasured", None),
    ]
    lines = click.unstyle(compared(difference(tensors), everything=False)).splitlines()
    assert lines[:3] == [
        "b is a fine-tune of a.",
        "fine-tune: score 0.97, p 1e-40",
        "1 of 4 tensors identical",
    ]
    assert [line.split() for line in lines[5:]] == [
        ["large", "renamed", "0.9", "0.5"],
        ["small", "-", "0.9", "0.01"],
        ["unmeasured", "-", "0.9", "-"],
    ]


@pytest.mark.parametrize(("everything", "shown"), [(False, 20), (True, 30)])
def test_diff_cuts_a_long_list_and_says_so(everything, shown):
    text = compared(difference([pair(f"t{i}", float(i)) for i in range(30)]), everything=everything)
    assert text.count("0.9 ") == shown
    assert ("… and 10 more (--all lists them)" in text) is not everything


def test_diff_of_identical_checkpoints_needs_no_table():
    text = compared(difference([pair("t", 0.0, identical=True)]), everything=False)
    assert text.endswith("1 of 1 tensors identical")


def test_a_relative_is_found_first(hilm):
    ran = hilm("index", "base", "stranger", "--json")
    assert ran.code == 0
    assert (len(ran.document["indexed"]), ran.document["failed"]) == (2, [])
    assert len(hilm("index", "base", "--json").document["skipped"]) == 1
    ran = hilm("search", "tuned", "--top-k", "2", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert [match["model"] for match in ran.document["matches"]] == ["base", "stranger"]
    assert hilm("--search-similar", "tuned", "--search-method", "hierarchical").code == 0


def test_diff_of_a_checkpoint_with_itself_is_identical(hilm):
    ran = hilm("diff", "base", "base", "--json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.document["relation"] == "identical"
    assert all(tensor["identical"] for tensor in ran.document["tensors"])
    assert "tensors identical\n" in hilm("diff", "base", "base").out
