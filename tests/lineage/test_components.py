from __future__ import annotations

import numpy as np
import pytest

from hilm.lineage.components import components
from hilm.lineage.search import weigh
from hilm.lineage.verdict import verdict
from tests.lineage.kinship import Prints, plus, task
from tests.tiny import bert_like

TEXT, SIGHT = bert_like(1), bert_like(2, width=80, layers=3, hidden=160, vocabulary=700)
EXTRA = {"projector.weight": np.random.default_rng(0).standard_normal((64, 80)).astype(np.float32)}


def graft(*parts):
    """A model of several, by their prefixes."""
    return {f"{prefix}.{n}": v for prefix, part in parts for n, v in part.items()} | EXTRA


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    tuned = plus(SIGHT, (1, task(SIGHT, 7)))
    prints = Prints(tmp_path_factory.mktemp("prints"))
    models = {"whole": graft(("language", TEXT), ("vision", tuned)), "text": TEXT, "sight": SIGHT}
    return dict(zip(models, prints(**models), strict=True)), prints


def test_a_model_of_two_stacks_falls_into_them(family):
    prints, _ = family
    parts = components(prints["whole"])
    assert [name.partition(".")[0] for name in parts] == ["language", "vision"]
    text, sight = parts.values()
    assert text.side().parameters + sight.side().parameters == prints["whole"].side().parameters
    assert text.side().width == 64
    assert sight.side().width == 80


def test_each_part_has_its_own_relative(family):
    prints, _ = family
    text, sight = components(prints["whole"]).values()
    assert verdict(weigh(text, prints["text"])).relation == "subset"
    found = verdict(weigh(sight, prints["sight"]))
    assert found.relation in {"fine-tune", "shares-ancestor", "resized"}
    assert 0.6 < found.details["statistics"]["sketch"]["cosine"] < 0.85  # √(2/π) of that of the weights
    assert verdict(weigh(text, prints["sight"])).relation == "independent"
    assert verdict(weigh(sight, prints["text"])).relation == "independent"


def test_models_of_one_stack_have_no_components(family):
    prints, make = family
    assert components(prints["text"]) == {}
    few = graft(("language", TEXT), ("vision", bert_like(3, layers=1, width=32, hidden=32)))
    assert components(*make(few=few)) == {}  # too small
    assert components(*make(none={"w": np.ones(5, np.float32)})) == {}
