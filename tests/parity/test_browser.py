"""A browser shows the page of a comparison: pictures with the worst tokens outlined, charts, tables."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from hilm.parity.engine import compare
from hilm.parity.inputs import Reading, read_inputs
from hilm.parity.report import page
from hilm.parity.runners import module_runner
from tests.parity.media import write_picture

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
OUTLINE, MARKUP = (0, 102, 255), "<img src=x onerror=document.title=1>"


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_a_page_in_a_browser(vit, tmp_path):
    model = vit.load()
    model.layers[1].attention.o_proj.weight.data *= 1.02
    picture = str(write_picture(tmp_path / "cat.png", 154, 126))
    items = read_inputs([("cat", "", picture)], Reading(size=(126, 154)))
    report = compare(vit, replace(module_runner(model), label=MARKUP), items, check_weights=False)
    file, shot = tmp_path / "report.html", tmp_path / "shot.png"
    file.write_text(page(report))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    size = ["--window-size=1200,1600", f"--screenshot={shot}", "--dump-dom", file.as_uri()]
    ran = subprocess.run([CHROMIUM, *flags, *size], capture_output=True, text=True, timeout=120, check=True)
    assert "<title>hilm parity</title>" in ran.stdout
    assert len(re.findall("<circle", ran.stdout)) == sum(s.mode == "local" for s in report.stages)
    assert len(re.findall("<image", ran.stdout)) == 1
    pixels = np.asarray(Image.open(shot).convert("RGB")).astype(int)
    assert (np.abs(pixels - OUTLINE).max(axis=2) < 8).sum() > 200
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 60)
    assert red.sum() > 100
