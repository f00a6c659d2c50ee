from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from hilm.inference.answers import best_spans


def slow_spans(starts, ends, spans, longest):
    """Every pair of tokens, one after the other."""
    best = {}
    for w in range(starts.shape[0]):
        for i in range(starts.shape[1]):
            for j in range(i, min(i + longest, starts.shape[1])):
                score = starts[w, i] * ends[w, j]
                place = (spans[w, i, 0], spans[w, j, 1])
                if score > 0:
                    best[place] = max(best.get(place, 0), score)
    return sorted(((s, *p) for p, s in best.items()), key=lambda x: (-x[0], x[1], x[2]))


@given(
    windows=st.integers(1, 4),
    tokens=st.integers(1, 12),
    longest=st.integers(1, 15),
    seed=st.integers(0, 2**32 - 1),
)
def test_spans_equal_a_double_loop(windows, tokens, longest, seed):
    random = np.random.default_rng(seed)
    starts, ends = random.integers(0, 4, (2, windows, tokens)) / 8  # ties and zeros
    edges = np.sort(random.integers(0, 30, (windows, tokens, 2)), axis=2)
    found = best_spans(starts, ends, edges, longest)
    assert found == slow_spans(starts, ends, edges, longest)


LONG = "the cat sat on the mat. " * 40 + "anna lives in berlin. " + "the dog sat. " * 40


def test_a_context_longer_than_a_window(runners):
    runner = runners["question-answering"]
    item = {"question": "where is anna?", "context": LONG}
    found = runner(item, top_k=20)
    assert len(found) == 20
    assert all(LONG[answer["start"] : answer["end"]] == answer["answer"] for answer in found)
    assert [answer["score"] for answer in found] == sorted((a["score"] for a in found), reverse=True)
    assert runner(item) == found[0]
    # one softmax over all windows: no more certainty than one to share between all of them
    apart = runner(item, top_k=20, score_scope="window")
    assert sum(a["score"] for a in found) <= 1
    assert apart[0]["score"] > found[0]["score"]


def test_no_answer_may_win(runners):
    item = {"question": "who?", "context": "the cat sat on the mat."}
    found = runners["question-answering"](item, top_k=1000, no_answer=True)
    assert [answer for answer in found if answer["answer"] == ""]
    assert "" not in [answer["answer"] for answer in runners["question-answering"](item, top_k=1000)]


def test_answers_are_at_most_so_long(runners):
    found = runners["question-answering"](
        {"question": "who?", "context": "the cat sat on the mat."}, top_k=1000, max_answer_len=1
    )
    assert max(len(answer["answer"].split()) for answer in found) == 1
