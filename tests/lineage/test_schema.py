from __future__ import annotations

from datetime import UTC, datetime

import numpy as np
import pytest

from hilm.errors import CatalogError
from hilm.lineage.schema import TABLES, to_arrow
from tests.lineage.rows import digest, fingerprint, model, reel


def test_every_table_declares_its_layout_and_a_required_key():
    for name, spec in TABLES.items():
        assert spec.name == f"{name}_v1"
        assert spec.schema.metadata == {b"hilm.schema": b"1"}
        assert not spec.schema.field(spec.key).nullable
        assert {spec.key, spec.stamp, "run_id", *spec.indexed} <= set(spec.schema.names)


def test_a_models_row_is_written_after_what_it_refers_to():
    order = list(TABLES)
    assert order.index("fingerprints") < order.index("reels") < order.index("models")


def test_one_reel_file_may_serve_several_entries():
    assert TABLES["reels"].key == "entry_key"
    shared = [reel(1), reel(2, reel_sha256=digest("reel", 1), uri="reels/1.mkv")]
    assert to_arrow("reels", shared).num_rows == 2


def test_values_survive():
    row = fingerprint(3, created_at=datetime(2026, 1, 2, tzinfo=UTC))
    (back,) = to_arrow("fingerprints", [row]).to_pylist()
    assert np.array_equal(back.pop("position_vec"), row.pop("position_vec"))
    assert np.array_equal(back.pop("anchored_vec"), row.pop("anchored_vec"))
    assert back.pop("seconds") == np.float32(row.pop("seconds"))
    assert back == row


def test_time_is_filled_in_and_optional_columns_may_be_absent():
    before = datetime.now(UTC)
    (row,) = to_arrow("models", [model(1)]).to_pylist()
    assert before <= row["created_at"] <= datetime.now(UTC)
    assert row["architecture"] is None
    assert row["declared_base"] is None


def test_the_first_of_equal_keys_counts():
    batch = to_arrow("models", [model(1), model(2), model(1, name="again")])
    assert batch["name"].to_pylist() == ["model-1", "model-2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (model(1, colour="red"), "no column colour"),
        ({key: value for key, value in model(1).items() if key != "uri"}, "lacks uri"),
        (model(1, ref_key=b"short"), "does not fit"),
        (model(1, parameters="many"), "does not fit"),
        (model(1, parameters=1 << 63), "does not fit"),
        (model(1, name="\ud800"), "does not fit"),
    ],
)
def test_rows_that_do_not_fit_are_refused(row, message):
    with pytest.raises(CatalogError, match=message):
        to_arrow("models", [row])


def test_vectors_of_another_length_are_refused():
    with pytest.raises(CatalogError, match="does not fit"):
        to_arrow("fingerprints", [fingerprint(1, position_vec=np.zeros(1023, np.int8))])
