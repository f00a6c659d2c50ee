"""A browser plays the front of a reel as it is: the reel itself is the video file."""

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
from tests.tiny import bert_like, write_model

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--remote-debugging-port=0",
)  # fmt: skip
SECONDS = 60
POINTS = [(x, y) for x in range(8, 512, 56) for y in range(8, 512, 56)]

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
    v.currentTime = (frame + 0.5) / 5
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
    encode(write_model(tmp_path / "m", bert_like(layers=1)), tmp_path / "x.reel.mp4", preview=True)
    with ReelFile.open(tmp_path / "x.reel.mp4") as reel:
        front = list(decode_preview(reel.front))
    frames = [0, len(front) // 2, len(front) - 1]
    page = PAGE.replace("POINTS", json.dumps(POINTS)).replace("FRAMES", json.dumps(frames))
    files = {"/page.html": page.encode(), "/x.reel.mp4": tmp_path / "x.reel.mp4", "/report": b"thanks"}
    with Server(files) as server:
        server.always["/page.html"] = Fault(headers={"Content-Type": "text/html"})
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", server.url("/page.html")]
        with subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as browser:
            try:
                facts = wait_for_report(server)
            finally:
                browser.terminate()
    assert "error" not in facts
    assert (facts["width"], facts["height"], facts["ready"] >= 2) == (512, 576, True)
    assert facts["duration"] == pytest.approx(len(front) / 5, abs=0.05)
    assert facts["played"] >= 0.3
    for number, seen in zip(frames, facts["frames"], strict=True):
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
