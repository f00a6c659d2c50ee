"""A walk through the pages in Chromium, which asks no other server for anything."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.tiny import bert_like, write_model
from tests.web.conftest import serving

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--force-device-scale-factor=1"]
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of playwright's own pipes
]


@pytest.fixture(scope="module")
def chromium():
    with pytest.importorskip("playwright.sync_api").sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def look(chromium, tmp_path):
    """A page that records requests, errors and screenshots ($HILM_SCREENSHOTS keeps those)."""
    folder = Path(os.environ.get("HILM_SCREENSHOTS", tmp_path))
    context = chromium.new_context(viewport={"width": 1280, "height": 900})
    page = context.new_page()
    page.hosts, page.problems = set(), []
    page.on("request", lambda r: page.hosts.add(urlsplit(r.url).hostname))
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda m: page.problems.append(m.text) if m.type == "error" else None)
    page.keep = lambda name: page.screenshot(path=folder / f"{name}.png", full_page=True)
    yield page
    context.close()
    assert page.hosts <= {"127.0.0.1", None}, page.hosts  # None: data and blob addresses
    # Leaving a page cuts its stream of news, which Gradio reports.
    assert [told for told in page.problems if "abort" not in told.lower() and "errored out" not in told] == []


def test_the_walk(look, house, tmp_path):
    shutil.copytree(house / "store", tmp_path / "store")
    page = look
    with serving(tmp_path / "store") as address:
        page.goto(address)
        page.get_by_role("link", name="base", exact=True).wait_for()
        page.keep("library")
        page.get_by_label("Add a model").fill(str(house / "late"))
        page.get_by_role("button", name="Add", exact=True).click()
        page.locator(".badge.done").wait_for()
        page.keep("added")
        page.get_by_label("Filter").fill("tun")
        page.locator("caption", has_text="1 models").wait_for()
        page.get_by_role("link", name="tuned", exact=True).click()

        page.get_by_role("heading", name="tuned", exact=True).wait_for()
        picture = page.locator("img.hilbert")
        picture.hover(position={"x": 30, "y": 30})
        page.locator(".reading", has_text="] = ").wait_for()
        first = page.locator(".reading").inner_text()
        picture.focus()
        page.keyboard.press("ArrowLeft")
        page.keyboard.press("ArrowDown")
        page.wait_for_function("before => document.querySelector('.reading').innerText != before", arg=first)
        played = page.evaluate(
            "async () => { const v = document.querySelector('video'); v.muted = true; await v.play();"
            " await new Promise(done => setTimeout(done, 700)); return v.currentTime }"
        )
        assert played > 0.2
        page.keep("model")

        page.get_by_role("link", name="Find relatives").click()
        page.locator(".badge", has_text="fine-tune").wait_for()
        page.keep("search")
        page.get_by_role("link", name="base", exact=True).click()

        page.get_by_role("heading", name="base", exact=True).wait_for()
        page.get_by_role("link", name="See its lineage").click()
        page.locator("svg.tree").wait_for()
        page.keep("lineage")
        page.locator("svg.tree a", has_text="fine-tune").click()

        page.get_by_role("row", name="embeddings.word_embeddings.weight").wait_for()
        page.keep("diff")


def test_running_jobs_are_cancelled_by_mouse_and_keyboard(look, house, tmp_path):
    large = bert_like(5, width=512, layers=12, hidden=2048)
    with serving(tmp_path / "store") as address:
        look.goto(address)
        for name in ("one", "two"):
            look.get_by_label("Add a model").fill(str(write_model(tmp_path / name, large)))
            look.get_by_role("button", name="Add", exact=True).click()
            button = look.get_by_role("button", name=f"/{name}")
            if name == "one":
                button.click()
            else:
                button.focus()
                look.wait_for_timeout(1200)  # the table is written anew meanwhile
                look.keyboard.press("Enter")
            look.locator(".badge.cancelled").nth(int(name == "two")).wait_for()
        look.get_by_role("link", name="Jobs").click()
        look.locator(".badge.cancelled").nth(1).wait_for()
        look.keep("jobs")
        look.goto("about:blank")  # it asks for news until then
    assert not list((tmp_path / "store" / "reels").glob("*.mp4"))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_and_pictures_have_words(chromium, house, served, scheme):
    """Every text has a contrast of at least 4.5 against what is behind it."""
    page = chromium.new_page(color_scheme=scheme)
    pages = {
        "/": "table",
        "/model?name=base": ".sheet",
        "/search?model=base": "table",
        "/diff?a=base&b=tuned": "table",
        "/lineage?model=base": "svg.tree",
    }
    for path, awaited in pages.items():
        page.goto(served + path)
        page.locator(f".hilm {awaited}").first.wait_for()
        assert page.evaluate(CONTRAST) == []
        assert page.locator(".hilm img:not([alt])").count() == 0
    page.close()


CONTRAST = """() => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number)
  const light = colour => numbers(colour).slice(0, 3).map(c => c / 255)
    .map(c => c <= .04045 ? c / 12.92 : ((c + .055) / 1.055) ** 2.4)
    .reduce((sum, c, k) => sum + c * [.2126, .7152, .0722][k], 0)
  const behind = element => {
    for (let e = element; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor, parts = numbers(colour)
      if (parts.length < 4 || parts[3] > .5) return colour
    }
    return 'rgb(255, 255, 255)'
  }
  const poor = []
  for (const e of document.querySelectorAll('.hilm *, label *, nav a, button')) {
    const written = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim())
    if (!written || !e.getClientRects().length) continue
    const style = getComputedStyle(e), ink = e.namespaceURI.includes('svg') ? style.fill : style.color
    const [a, b] = [light(ink), light(behind(e))].sort((x, y) => y - x)
    if ((a + .05) / (b + .05) < 4.5) poor.push([e.outerHTML.slice(0, 120), ink, behind(e)])
  }
  return poor
}"""
