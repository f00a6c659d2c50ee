from __future__ import annotations

import av
import numpy as np
import pytest

from hilm.errors import NotACheckpoint, UnknownModel, UsageError
from hilm.reel.video import decode_preview
from tests.store.conftest import tiny, tuned
from tests.tiny import write_model

NAME = "encoder.layer.0.intermediate.dense.weight"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A training run: each checkpoint is further from the first."""
    root, base = tmp_path_factory.mktemp("run"), tiny(1)
    step = {n: v - base[n] for n, v in tuned(base).items()}
    return [
        write_model(root / f"checkpoint-{n}", {k: base[k] + n * step[k] for k in base}) for n in (0, 1, 4)
    ]


def pictures(path):
    return [frame[:512] for frame in decode_preview(path.read_bytes())]


def test_a_film_has_a_frame_a_checkpoint_and_one_scale(run, store, tmp_path):
    document = store.film(run, tmp_path / "f.mp4")
    assert (document["tensor"], document["shape"], document["scale"]) == (NAME, [64, 32], 2**-5)
    assert [f["model"] for f in document["frames"]] == ["checkpoint-0", "checkpoint-1", "checkpoint-4"]
    assert len(pictures(tmp_path / "f.mp4")) == 3
    with av.open(tmp_path / "f.mp4") as video:
        assert "no weights" in video.metadata["comment"]
        assert [chapter["metadata"]["title"] for chapter in video.chapters()][2] == "checkpoint-4"


def test_differences_begin_at_nothing_and_grow(run, store, tmp_path):
    document = store.film(run, tmp_path / "f.mp4", tensor=NAME, difference=True)
    sigmas = [frame["sigma"] for frame in document["frames"]]
    assert sigmas[0] == 0
    assert sigmas[2] == pytest.approx(4 * sigmas[1], rel=1e-3)
    spread = [float(picture.astype(float).std()) for picture in pictures(tmp_path / "f.mp4")]
    assert spread[0] < 1 < spread[1] < spread[2]


def test_reels_and_names_of_the_store_are_filmed_like_folders(run, store, tmp_path):
    store.encode(run[1:])
    reel = store.reel("checkpoint-1")
    mixed = store.film([run[0], reel, "checkpoint-4"], tmp_path / "a.mp4")
    folders = store.film(run, tmp_path / "b.mp4")
    assert [f["sigma"] for f in mixed["frames"]] == [f["sigma"] for f in folders["frames"]]
    assert np.array_equal(pictures(tmp_path / "a.mp4"), pictures(tmp_path / "b.mp4"))


def test_what_cannot_be_filmed_is_said_and_nothing_written(run, store, tmp_path):
    out = tmp_path / "f.mp4"
    other = write_model(tmp_path / "other", {NAME: np.zeros((8, 8), np.float32)})
    store.encode(run[:1], mode="sample", max_params=100)
    for models, options, error in [
        (run[:1], {}, UsageError),
        ([*run, other], {}, UsageError),
        (run, {"tensor": "nothing"}, UsageError),
        ([store.reel("checkpoint-0")] * 2, {}, UsageError),
        ([run[0], "no such model"], {}, UnknownModel),
        ([run[0], tmp_path], {}, NotACheckpoint),
    ]:
        with pytest.raises(error):
            store.film(models, out, **options)
    assert not out.exists()
