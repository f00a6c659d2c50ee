from __future__ import annotations

import numpy as np
import pytest

from hilm.errors import UsageError
from hilm.parity.inputs import Item
from hilm.parity.memory import estimate, refusing
from tests.tiny import write_sparse

CONFIG = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2}
CLIP = Item("clip", "video", "clip", np.zeros((8, 280, 280, 3), np.uint8), 14)
PIXELS = 8 * 3 * 14**2


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    for dtype in ("F32", "BF16"):
        write_sparse(folder / dtype, (512, 1024), dtype)
    return folder


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_run_takes_weights_activations_and_pixels(folder, dtype, size):
    found = estimate([str(folder / "F32")], CONFIG, [CLIP], dtype)
    assert found["tokens"] == 8 * 20 * 20
    assert found["weights_mb"] == 2  # stored in 4 bytes, whatever it runs in
    assert found["peak_mb"] == 2 + 3200 * (size * (15 * 64 + 2 * 256) + PIXELS) / 2**20


@pytest.mark.parametrize(("stored", "size"), [("F32", 8), ("BF16", 4)])
def test_a_comparison_runs_one_format_higher(folder, stored, size):
    found = estimate([str(folder / stored)], CONFIG, [CLIP])
    assert found["weights_mb"] == 4  # the cut of it runs in float64
    assert found["peak_mb"] == 4 + 3200 * (size * (20 * 64 + 2 * 256) + PIXELS) / 2**20


def test_what_does_not_fit_is_refused_with_numbers(folder):
    paths, needed = [str(folder / "F32")], estimate([str(folder / "F32")], CONFIG, [CLIP], "float32")
    with pytest.raises(UsageError, match=r"clip needs about 34 MiB, the limit is 20 MiB") as caught:
        estimate(paths, CONFIG, [CLIP], "float32", 20)
    assert caught.value.hint == "--num_frames 4"
    fewer = Item("clip", "video", "clip", CLIP.frames[:4], 14)
    assert estimate(paths, CONFIG, [fewer], "float32", 20)["peak_mb"] < 20 < needed["peak_mb"]
    with pytest.raises(UsageError) as caught:
        estimate(paths, CONFIG, [CLIP], "float32", 1)
    assert caught.value.hint == "give smaller inputs or more memory"


def test_tokens_of_texts_count():
    tokens = Item("text", "arrays", "text", arrays={"input_ids": np.zeros((2, 50), np.int64)})
    assert estimate([], CONFIG, [tokens])["tokens"] == 100


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("not enough memory: you tried to allocate")])
def test_memory_that_runs_out_all_the_same(error):
    with pytest.raises(UsageError, match="34 MiB were expected"), refusing({"peak_mb": 34.0}):
        raise error
    with pytest.raises(RuntimeError, match="else"), refusing(None):
        raise RuntimeError("something else")
