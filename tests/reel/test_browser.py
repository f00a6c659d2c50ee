"""A browser plays a reel as it is, its front or the symbols themselves: the reel is the video file."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
from urllib.parse import unquote

import numpy as np
import pytest

from hilm.reel.container import ReelFile
from hilm.reel.video import decode_preview
from tests.reel.archives import encode
from tests.servers import Fault, Server
from tests.tiny import bert_like, stored, write_model

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip
SECONDS = 60
POINTS = [(x, y) for x in range(8, 512, 56) for y in range(8, 512, 56)]
SEEKS = [0, 7, 15]

# Waits for the video, plays the beginning, then seeks to three frames and reads pixels of each.
PAGE = """<!doctype html><body><video id=v muted src="/x.reel.mp4"></video><canvas id=c></canvas><script>
const v = document.getElementById("v"), c = document.getElementById("c"), points = POINTS
const say = facts => fetch("/report?" + encodeURIComponent(JSON.stringify(facts)))
const once = name => new Promise(done => v.addEventListener(name, done, {once: true}))
async function look() {
  if (v.readyState < 2) await once("loadeddata")
  const facts = {ready: v.readyState, width: v.videoWidth, height: v.videoHeight, duration: v.duration}
  v.play()
  while (v.currentTime < 0.3) await new Promise(done => setTimeout(done, 20))
  v.pause()
  facts.played = v.currentTime
  facts.frames = []
  c.width = v.videoWidth
  c.height = v.videoHeight
  for (const frame of FRAMES) {
    v.currentTime = (frame + 0.5) / FPS
    await once("seeked")
    const pen = c.getContext("2d")
    pen.drawImage(v, 0, 0)
    facts.frames.push(points.map(([x, y]) => pen.getImageData(x, y, 1, 1).data[1]))
  }
  say(facts)
}
v.addEventListener("error", () => say({error: v.error.message}))
look().catch(problem => say({error: String(problem)}))
</script>"""


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_plays_and_seeks_a_reel(tmp_path):
    tensors = bert_like(layers=1)
    encode(write_model(tmp_path / "m", tensors), tmp_path / "x.reel.mp4", preview=True)
    front = front_of(tmp_path)
    assert (len(front), front[0].shape) == (len(tensors), (576, 512))
    check(watch(tmp_path, fps=5), front, fps=5)


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
def test_a_browser_plays_and_seeks_the_symbols_themselves(tmp_path):
    rows, columns = np.mgrid[: 4 * 512, : 5 * 512]
    tiles = 9 * (rows // 512 * 5 + columns // 512)  # as bright as the number of the frame
    symbols = (tiles + rows % 512 // 8 + columns % 512 // 64).astype(np.uint8)
    model = write_model(tmp_path / "m", {"w": stored(symbols)})
    encode(model, tmp_path / "x.reel.mp4", carrier="vp9", layout="raster")
    front = front_of(tmp_path)
    shown = [symbols[y : y + 512, x : x + 512] for y in range(0, 2048, 512) for x in range(0, 2560, 512)]
    assert np.array_equal(front, shown)
    check(watch(tmp_path, fps=25), front, fps=25)


def front_of(folder):
    with ReelFile.open(folder / "x.reel.mp4") as reel:
        return list(decode_preview(reel.front))


def watch(folder, fps):
    """What a browser saw of the reel in this folder."""
    page = PAGE
    for name, value in (("POINTS", json.dumps(POINTS)), ("FRAMES", json.dumps(SEEKS)), ("FPS", str(fps))):
        page = page.replace(name, value)
    files = {"/page.html": page.encode(), "/x.reel.mp4": folder / "x.reel.mp4", "/report": b"thanks"}
    with Server(files) as server:
        server.always["/page.html"] = Fault(headers={"Content-Type": "text/html"})
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'profile'}", server.url("/page.html")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as browser:
            try:
                return wait_for_report(server)
            finally:
                browser.terminate()


def check(facts, front, fps):
    """The browser played the video, and saw these frames."""
    assert "error" not in facts
    assert (facts["height"], facts["width"]) == front[0].shape
    assert facts["ready"] >= 2
    assert facts["duration"] == pytest.approx(len(front) / fps, abs=0.05)
    assert facts["played"] >= 0.3
    for number, seen in zip(SEEKS, facts["frames"], strict=True):
        expected = np.array([front[number][y, x] for x, y in POINTS], int)
        assert np.abs(np.array(seen) - expected).max() <= 3, f"frame {number}"


def wait_for_report(server):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        for seen in list(server.seen):
            if seen.path.startswith("/report?"):
                return json.loads(unquote(seen.path.partition("?")[2]))
        time.sleep(0.05)
    pytest.fail(f"no report after {SECONDS} s; asked for: {[seen.path for seen in server.seen]}")
