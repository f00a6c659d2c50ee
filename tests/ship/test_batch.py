from __future__ import annotations

import pytest

from hilm import errors
from hilm.ship import batch_upload_models, push_batch, upload_model_to_hub
from tests.hub_server import GOOD
from tests.ship.cards import CONFIG, TENSORS, good
from tests.tiny import write_model


def test_names_come_from_sizes_or_stems(online, tmp_path):
    for name in ("resnet_bk_1b", "resnet_bk_10m_final", "tiny_one"):
        write_model(tmp_path / "c" / name, TENSORS, config=CONFIG)
    (tmp_path / "c" / "notes").mkdir()
    assert batch_upload_models(tmp_path / "c", "someone/bk", token=GOOD) == [
        f"{online.endpoint}/someone/bk-{suffix}" for suffix in ("10m", "1b", "tiny-one")
    ]


def test_one_failure_stops_nothing_else(online, tmp_path):
    write_model(tmp_path / "c" / "a", TENSORS, config=CONFIG)
    good(tmp_path / "c" / "b", "someone/else")
    write_model(tmp_path / "c" / "c", TENSORS, config=CONFIG)
    found = push_batch(tmp_path / "c", "someone/m")
    assert [told["repo"] for told in found["pushed"]] == ["someone/m-a", "someone/m-c"]
    assert [(f["repo"], f["exit_code"]) for f in found["failed"]] == [("someone/m-b", 2)]
    with pytest.raises(errors.HilmError, match="C19"):
        batch_upload_models(tmp_path / "c", "someone/m")


def test_two_of_one_name_are_refused_before_anything_is_sent(online, tmp_path):
    for name in ("x_1b", "y_1b"):
        write_model(tmp_path / "c" / name, TENSORS, config=CONFIG)
    with pytest.raises(errors.UsageError, match="someone/m-1b"):
        push_batch(tmp_path / "c", "someone/m")
    assert not online.log


def test_no_models(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(errors.InputError):
            push_batch(folder, "someone/m")


def test_a_dry_run_sends_nothing(online, tmp_path):
    write_model(tmp_path / "c" / "a", TENSORS, config=CONFIG)
    assert push_batch(tmp_path / "c", "someone/m", dry_run=True)["pushed"][0]["bytes"] > 0
    assert not online.writes()


def test_the_documented_function_returns_the_address(online, tmp_path):
    folder = write_model(tmp_path / "a", TENSORS, config=CONFIG)
    assert upload_model_to_hub(folder, "someone/a", private=False) == f"{online.endpoint}/someone/a"
    assert not online.repositories["models", "someone/a"].private
