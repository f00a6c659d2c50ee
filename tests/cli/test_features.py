from __future__ import annotations

import json
import shutil
import sys
import wave
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("torch")

from hilm.models.onevision import load_onevision
from hilm.parity import extraction
from hilm.parity.runners import TorchRunner
from tests.parity.conftest import pair  # noqa: F401 - a fixture
from tests.parity.media import write_clip, write_picture


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


BAD_OPTIONS = (
    ("", "no input"),
    ("--num_frames 0 --image1 a.png", "0 frames"),
    ("--num_frames 65 --image1 a.png", "--virtual_frames 65"),
    ("--num_frames x --image1 a.png", "num-frames"),
    ("--input a.png", "NAME=PATH"),
    ("--input a/b=a.png", "NAME=PATH"),
    ("--image1 a.png --input image1=a.png", "two inputs"),
    ("--image1 a.png --device cuda", "no device"),
    ("--image1 a.png --attn flash", "flash attention"),
    ("--image1 big.png --memory_limit 1 --dtype float32", "the limit is 1 MiB"),
    ("--image1 a.png --max_pixels 100", "70 x 56"),
    ("--image1 odd.png --fit error", "odd.png: 71 x 9"),
    ("--image1 odd.png --fit crop", "odd.png: 71 x 9"),
    ("--image1 a.png --output_dir a.png", "a.png"),
    ("--image1 a.png --hf_model_path nowhere", "no usable config.json"),
    ("--image1 a.png --packing_model_path strange", "no usable config.json"),
    ("--image1 a.png --packing_model_path other", "num_hidden_layers 3 and 2"),
)


@pytest.mark.parametrize(("line", "reason"), BAD_OPTIONS)
def test_bad_options(hilm, here, house, line, reason):
    write_picture(house / "a.png")
    write_picture(house / "odd.png", 71, 9)
    write_picture(house / "big.png", 700, 700)
    for name, kind in (("strange", {"model_type": "no such type"}), ("other", {"num_hidden_layers": 2})):
        shutil.copytree(here / "packed", house / name)
        config = json.loads((house / name / "config.json").read_text())
        (house / name / "config.json").write_text(json.dumps(config | kind))
    models = ["--hf_model_path", f"{here}/padded", "--packing_model_path", f"{here}/packed"]
    ran = hilm("features", "extract", *models, *line.split())
    assert (ran.code, ran.out) == (2, ""), ran.err
    assert reason in ran.err
    assert not list((house / "features").glob("*"))


@pytest.fixture(scope="module")
def bad_files(tmp_path_factory):
    """One file of every kind that is no usable input."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "text.mp4").write_text("nothing\n" * 50)
    (folder / "empty.png").touch()
    (folder / "folder.png").mkdir()
    picture = write_picture(folder / "a.png").read_bytes()
    (folder / "cut.png").write_bytes(picture[: len(picture) // 2])
    Image.fromarray(np.ones((20, 20), np.float32)).save(folder / "float.tiff")
    with wave.open(str(folder / "sound.mp4"), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    whole = write_clip(folder / "whole.mp4", 20).read_bytes()
    (folder / "headless.mp4").write_bytes(whole[: whole.rindex(b"moov") - 4])
    blank = bytearray(whole)
    start = blank.index(b"mdat") + 4
    blank[start : blank.rindex(b"moov") - 4] = bytes(blank.rindex(b"moov") - 4 - start)
    (folder / "blank.mp4").write_bytes(blank)
    return folder


@pytest.mark.parametrize(
    ("flag", "name", "reason"),
    [
        ("--image1", "none.png", "no such file"),
        ("--image1", "folder.png", "a directory"),
        ("--image1", "empty.png", "empty"),
        ("--image1", "text.mp4", "not a picture"),
        ("--image1", "cut.png", "a damaged picture"),
        ("--image1", "float.tiff", "mode F"),
        ("--video1", "text.mp4", "not a video"),
        ("--video1", "a.png", "not a video"),
        ("--video1", "sound.mp4", "no video stream"),
        ("--video1", "headless.mp4", "not a video"),
        ("--video1", "blank.mp4", ""),
    ],
)
def test_bad_files(hilm, here, house, bad_files, monkeypatch, flag, name, reason):
    monkeypatch.setattr(TorchRunner, "open", lambda *_: pytest.fail("a model was loaded"))
    models = ["--hf_model_path", f"{here}/padded", "--packing_model_path", f"{here}/packed"]
    ran = hilm("features", "extract", *models, flag, str(bad_files / name))
    assert (ran.code, ran.out) == (2, ""), ran.err
    error, *hints = ran.err.splitlines()
    assert name in error
    assert reason in error
    assert len(hints) <= 1
    assert not list((house / "features").glob("*"))


def test_what_is_odd_but_usable_is_said(hilm, here, house):
    write_picture(house / "tiny.png", 5, 3)
    write_clip(house / "short.mp4", 3)
    models = ["--hf_model_path", f"{here}/padded", "--packing_model_path", "convert"]
    files = ["--image1", "tiny.png", "--video1", "short.mp4"]
    ran = hilm("features", "extract", *models, *files, "--json")
    assert (ran.code, ran.document["inputs"]["image1"]["tokens"]) == (0, 1)
    assert ran.document["inputs"]["video1"]["duplicates"] == 5
    assert "3 frames for 8 samples: 5 repeat" in ran.err
    assert hilm("features", "verify").code == 0


def test_weights_that_differ_or_are_not_finite(hilm, here, house):
    model = load_onevision(here / "padded", packed=True)
    model.encoder.layers[0].mlp.fc2.bias.data[3] = np.nan
    model.save_pretrained(house / "broken")
    models = ["--hf_model_path", f"{here}/padded", "--packing_model_path", "broken"]
    ran = hilm("features", "extract", *models, "--image1", f"{here}/1.png", "--json")
    assert (ran.code, ran.document["models"]["same_weights"]) == (0, False)
    assert "do not have the same weights" in ran.err
    assert "not finite" in ran.err
    ran = hilm("features", "verify", "--junit", "f.xml", "--html", "f.html")
    assert ran.code == 3
    assert "FAIL (" in ran.out
    assert "NaN or infinite" in ran.out
    suite = ET.parse(house / "f.xml").find("testsuite")
    assert (suite.get("name"), suite.get("failures")) == ("image1", "1")
    assert "NaN" in (house / "f.html").read_text()


@pytest.mark.parametrize(("module", "extra"), [("torch", "hilm[torch]"), ("av", "av")])
def test_what_is_not_installed_is_named(hilm, here, house, monkeypatch, module, extra):
    monkeypatch.setitem(sys.modules, module, None)
    models = ["--hf_model_path", f"{here}/padded", "--packing_model_path", f"{here}/packed"]
    ran = hilm("features", "extract", *models, "--video1", f"{here}/1.mp4")
    assert (ran.code, ran.out) == (4, "")
    assert extra in ran.err
    assert not list((house / "features").glob("*"))


def test_an_interrupt_leaves_nothing(hilm, here, house, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(extraction, "save_arrays", interrupt)
    ran = hilm("features", "extract", *DOCUMENTED.format(here).split())
    assert (ran.code, ran.out) == (1, "")
    assert not list((house / "features").glob("*"))


def test_no_features_at_all(hilm):
    assert hilm("features", "verify", "--features_dir", "nowhere").code == 2
