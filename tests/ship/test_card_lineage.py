from __future__ import annotations

import numpy as np
import pytest

import hilm
from hilm.cli.main import main
from hilm.ship import check_base
from tests.ship.cards import good
from tests.tiny import bert_like, write_model


@pytest.fixture
def family(tmp_path):
    """A store with a base and a stranger; a fine-tune that declares the one or the other."""
    base = bert_like(1, layers=2)
    noise = np.random.default_rng(0)
    tuned = {n: v + 0.001 * noise.standard_normal(v.shape, np.float32) for n, v in base.items()}
    write_model(tmp_path / "base", base)
    write_model(tmp_path / "stranger", bert_like(2, layers=2))
    store = hilm.Store(tmp_path / "store")
    store.index([str(tmp_path / "base"), str(tmp_path / "stranger")])

    def declare(name):
        return good(tmp_path / "tuned", "me/tuned", tensors=tuned, config=None, base_model=(name,))

    return declare, tmp_path / "store"


def test_a_declared_base_is_compared_with_the_weights(family):
    declare, store = family
    (found,) = check_base(declare("org/base"), store)
    assert (found["agrees"], found["relation"]) == (True, "fine-tune")
    (found,) = check_base(declare("org/stranger"), store)
    assert (found["agrees"], found["relation"]) == (False, "independent")
    (found,) = check_base(declare("org/elsewhere"), store)
    assert found["agrees"] is None


def test_a_false_base_ends_with_3(family, capsys):
    declare, store = family
    assert main(["card", "check", str(declare("org/base")), "--lineage", str(store)]) == 0
    assert main(["card", "check", str(declare("org/stranger")), "--lineage", str(store), "--json"]) == 3
    assert "CONTRADICTED" not in capsys.readouterr().err
