from __future__ import annotations

import io
import math

import numpy as np
import pytest
from PIL import Image

from hilm.errors import InputError
from hilm.training.record import Journal, Run, draw_loss, is_whole, seal, without_paths


def test_only_whole_checkpoints_count(tmp_path):
    for step in (2, 10, 30):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "weights").write_bytes(b"w" * step)
    for step in (2, 10):
        seal(tmp_path / f"checkpoint-{step}")
    assert [step for step, _ in Run(tmp_path).checkpoints()] == [10, 2]
    (tmp_path / "checkpoint-10" / "weights").write_bytes(b"x" * 10)
    assert not is_whole(tmp_path / "checkpoint-10")
    (tmp_path / "checkpoint-2" / "more").write_bytes(b"?")
    assert list(Run(tmp_path).checkpoints()) == []


def test_the_journal_counts_what_is_no_number(tmp_path):
    journal = Journal(Run(tmp_path))
    going = [
        journal.add(step, {"loss": loss})
        for step, loss in enumerate([1.0, math.nan, 2.0, math.inf, math.nan])
    ]
    assert going == [True] * 5
    assert not journal.add(5, {"loss": math.nan})
    assert journal.first_wrong == 3
    assert [event["loss"] for event in Run(tmp_path).events()] == [1.0, None, 2.0, None, None, None]


def test_the_journal_goes_back(tmp_path):
    journal = Journal(Run(tmp_path))
    for step in range(1, 7):
        journal.add(step, {"loss": 1 / step})
    with (tmp_path / "events.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')  # killed while writing
    journal.rewind(4)
    assert [event["step"] for event in Run(tmp_path).events()] == [1, 2, 3, 4]
    figures = journal.summarise()
    assert figures["loss"] == {"first": 1.0, "last": 0.25, "best": 0.25}
    assert (tmp_path / "metrics.csv").read_text().splitlines()[0] == "step,loss"


def test_the_plot_shows_the_loss():
    events = [{"step": n, "loss": 1 / n, "reward": n / 10} for n in range(1, 30)]
    picture = Image.open(io.BytesIO(draw_loss(events)))
    assert picture.size == (960, 540)
    pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
    for colour in ((0x1F, 0x4E, 0x9A), (0xC2, 0x64, 0x1A)):
        assert (np.abs(pixels.astype(int) - colour).sum(1) < 12).sum() > 200


def test_no_folder_is_named():
    assert without_paths({"a": ["x"], "b": {"c": "/home/me/model"}, "d": "org/name"}) == {
        "a": ["x"], "b": {"c": "model"}, "d": "org/name",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}'])
def test_what_is_no_run(tmp_path, text):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(InputError):
        Run.open(tmp_path)
