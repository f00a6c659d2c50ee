"""Every page of ``hilm serve`` answers within a second for a store of 1,000 models.

A page counts from asking for its address until what it shows of the store stands in a browser (Chromium).

Run: python benchmarks/web.py
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
from catalogs import fill, template
from harness import Gate, Result, main
from playwright.sync_api import sync_playwright
from processes import HILM
from safetensors.numpy import load_file, save_file

from hilm import Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Page

MODELS, RUNS = 1000, 3
PAGES = {
    "library": ("/", "table"),
    "model": ("/model?name=0-7", ".sheet"),
    "search": ("/search?model=0-7", "table"),
    "lineage of one": ("/lineage?model=0-7", "svg.tree"),
    "lineage of all": ("/lineage", ".notice"),
    "diff": ("/diff?a=0-7&b=tuned", "table"),
    "parity": ("/parity", "p"),
    "jobs": ("/jobs", "p"),
}


@contextmanager
def serving(store: Path) -> Iterator[str]:
    words = [HILM, "serve", "--port", "0", "--json", "--storage-dir", str(store)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        document = "".join(iter(process.stdout.readline, "}\n")) + "}"
        yield json.loads(document)["address"].rstrip("/")
        process.terminate()


def tune(model: Path, out: Path) -> None:
    """Write the model of all entries with small changes."""
    rng = np.random.default_rng(2)
    tensors = load_file(model / "model.safetensors")
    out.mkdir()
    changed = {k: t + np.float32(1e-3) * rng.standard_normal(t.shape, np.float32) for k, t in tensors.items()}
    save_file(changed, out / "model.safetensors")


def show(page: Page, address: str, awaited: str) -> float:
    started = time.perf_counter()
    page.goto(address)
    page.locator(f".hilm {awaited}").first.wait_for()
    return time.perf_counter() - started


def measure() -> Result:
    hosts = set[str | None]()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        store = Store(Path(folder) / "store")
        store.path.mkdir()
        store.make()
        fill(store.catalog, MODELS, np.random.default_rng(1), *template(Path(folder)))
        tune(Path(folder) / "model", Path(folder) / "tuned")
        store.index([Path(folder) / "tuned"], jobs=1)
        browser = driver.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        with serving(store.path) as address:
            page = browser.new_page()
            page.on("request", lambda request: hosts.add(urlsplit(request.url).hostname))
            cold = show(page, address, "table")
            times = {}
            for name, (path, awaited) in PAGES.items():
                show(page, address + path, awaited)
                times[name] = statistics.median(show(page, address + path, awaited) for _ in range(RUNS))
            page.close()
        browser.close()
    return Result(
        name="web",
        claim=f"every page of `hilm serve` is there within a second for a store of {MODELS:,} models",
        command="python benchmarks/web.py",
        gates=(
            *(Gate(f"{name}, median of {RUNS}", seconds, "<", 1, "s") for name, seconds in times.items()),
            Gate("first page of a new server", cold, "<", 3, "s"),
            Gate("hosts asked but loopback", len(hosts - {"127.0.0.1", None}), "<=", 0, ""),
        ),
        figures={},
    )


if __name__ == "__main__":
    main(measure)
