from __future__ import annotations

import pytest

pytest.importorskip("torch")

from tests.parity.conftest import pair  # noqa: F401 - a fixture
from tests.parity.media import write_picture


@pytest.fixture
def here(pair, monkeypatch):  # noqa: F811 - the fixture
    return pair


DOCUMENTED = (
    "--image1 {0}/1.png --image2 {0}/2.jpg --video1 {0}/1.mp4 --video2 {0}/b-frames.mp4 --num_frames 8 "
    "--hf_model_path {0}/padded --packing_model_path {0}/packed --output_dir ./features"
)


def test_the_documented_workflow(hilm, here):
    ran = hilm("features", "extract", *DOCUMENTED.format(here).split(), "--json")
    assert (ran.code, ran.document["num_frames"]) == (0, 8)
    ran = hilm("features", "verify", "--features_dir", "./features", "--html", "f.html", "--junit", "f.xml")
    assert ran.code == 0
    assert ran.out.endswith("✅ All features match! Models are consistent.\n")
    ran = hilm("features", "extract", *DOCUMENTED.format(here).split())
    assert (ran.code, ran.out) == (2, "")
    ran = hilm("features", "verify", "--threshold", "1", "--json")
    assert (ran.code, ran.document["ok"]) == (3, False)


def test_bad_command_lines(hilm, here, house):
    models = ["--hf_model_path", f"{here}/padded", "--packing_model_path", f"{here}/packed"]
    write_picture(house / "a.png")
    (house / "text.mp4").write_text("nothing")
    for words, reason in (
        ([], "no input"),
        (["--num_frames", "0", "--image1", "a.png"], "0 frames"),
        (["--num_frames", "65", "--image1", "a.png"], "virtual frames"),
        (["--num_frames", "x", "--image1", "a.png"], "num-frames"),
        (["--input", "a.png"], "NAME=PATH"),
        (["--image1", "a.png", "--input", "image1=a.png"], "two inputs"),
        (["--image1", "none.png"], "no such file"),
        (["--video1", "text.mp4"], "not a video"),
        (["--video1", "a.png"], "not a video"),
        (["--image1", "text.mp4"], "not a picture"),
        (["--image1", "a.png", "--device", "cuda"], "no device"),
        (["--image1", "a.png", "--memory_limit", "1", "--dtype", "float32"], ""),
    ):
        ran = hilm("features", "extract", *models, *words)
        if reason:
            assert (ran.code, ran.out) == (2, ""), words
            assert reason in ran.err
            assert not list((house / "features").glob("*"))
    assert hilm("features", "verify", "--features_dir", "nowhere").code == 2
