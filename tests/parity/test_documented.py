"""The lines of docs/requirements.md and the blocks of docs/parity.md run as they stand."""

from __future__ import annotations

import re
import shlex
import shutil

import numpy as np
import pytest

from hilm.cli.main import main
from tests.pages import DOCS, run_page
from tests.parity.media import write_clip, write_picture

SECTION = (DOCS / "requirements.md").read_text().partition("## Features of a padded")[2].partition("\n## ")[0]
ROWS = re.findall(r"^\| `python (\S+\.py [^`]*)` \| `hilm ([^`]*)` \|$", SECTION, re.MULTILINE)


@pytest.fixture
def here(pair, tmp_path, monkeypatch):
    """The folder that the guide describes."""
    monkeypatch.chdir(tmp_path)
    names = ("path/to/{}_model", "models/{}_llava_vit_so400m_patch14_siglip_384")
    for name in names:
        shutil.copytree(pair / "padded", tmp_path / name.format("hf"))
        shutil.copytree(pair / "packed", tmp_path / name.format("packing"))
    (tmp_path / "test_data").mkdir()
    for name in ("1.jpg", "2.jpg", "1.mp4", "2.mp4"):
        write = write_picture if name.endswith("jpg") else lambda path: write_clip(path, 24)
        write(tmp_path / name)
        shutil.copy(tmp_path / name, tmp_path / "test_data" / name)
    return tmp_path


def test_the_documented_lines_run(here, capsys):
    assert len(ROWS) == 4
    for documented, line in ROWS:
        assert set(re.findall(r"--\w+", documented)) == set(re.findall(r"--\w+", line))
        assert main(shlex.split(line)) == 0
    assert capsys.readouterr().out.endswith("✅ All features match! Models are consistent.\n")
    features_hf = np.load("./extracted_features/features_hf.npz")
    features_packing = np.load("./extracted_features/features_packing.npz")
    assert features_hf["image1"].shape == (1, 20, 64)
    assert features_packing["video1"].shape == (160, 64)


def test_the_guide_runs(pair, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ("padded", "packed"):
        (tmp_path / name).symlink_to(pair / name)
    write_picture(tmp_path / "cat.png")
    write_clip(tmp_path / "clip.mp4", 30)
    assert run_page(DOCS / "parity.md", capsys) == 5
    assert (tmp_path / "report.html").exists()
