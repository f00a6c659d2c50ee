"""The pages as a Gradio app; the only file that knows Gradio.

Everything comes from this server: no fonts, scripts or figures from elsewhere, and none are sent there.
"""

from __future__ import annotations

import os
import warnings
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # is read when it is imported

import hilm
from hilm.errors import HilmError, InputError
from hilm.extras import require
from hilm.html import Markup, join, tag
from hilm.web import views
from hilm.web.access import UPLOAD
from hilm.web.jobs import MODES, Job, Jobs
from hilm.web.pages.common import notice
from hilm.web.pages.diff import show_difference
from hilm.web.pages.jobs import show_jobs
from hilm.web.pages.library import show_library
from hilm.web.pages.lineage import show_family
from hilm.web.pages.model import show_model
from hilm.web.pages.parity import show_report, show_reports
from hilm.web.pages.search import show_relatives
from hilm.web.pictures import read_tensor

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

gr: Any = require("gradio")

HERE = Path(__file__).parent
MAIN = "Library"
METHODS = ["hybrid", "hierarchical", "features"]

# A button of a job's row makes an event of the whole table. The table is written anew all the time, also
# between press and release, which then make no click: pressing is enough. A button that had the focus gets
# it back.
CANCEL = """let focused
for (const kind of ['pointerdown', 'click']) element.addEventListener(kind, event => {
  const button = event.target.closest('[data-job]')
  if (button) trigger('click', {job: Number(button.dataset.job)})
})
document.addEventListener('focusin', event => { focused = event.target.dataset.job })
new MutationObserver(() => {
  if (focused && document.activeElement === document.body)
    element.querySelector(`[data-job="${focused}"]`)?.focus()
}).observe(element, {childList: true, subtree: true})"""


def mount(server: Any, path: Path, jobs: Jobs | None) -> Any:
    """Put the app over a store behind a FastAPI server's own addresses; without jobs it only reads."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "SSR mode", UserWarning)  # which is off
        return gr.mount_gradio_app(
            server,
            Pages(path, jobs).build(),
            "/",
            ssr_mode=False,
            mcp_server=False,
            enable_monitoring=False,
            run_history=False,
            show_error=False,
            footer_links=[],
            max_file_size=UPLOAD,
            theme=gr.themes.Base(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"]),
            css=(HERE / "page.css").read_text(),
            head=f"<script>{(HERE / 'page.js').read_text()}</script>",
        )


def told(page: Callable[..., str]) -> Callable[..., str]:
    """Make what goes wrong part of the page."""

    @wraps(page)
    def show(*args: Any) -> str:
        try:
            content = page(*args)
        except HilmError as error:
            content = notice(error.message, error.hint)
        except OSError as error:
            content = notice(f"this cannot be read: {error.strerror}")
        return tag("div", content, class_="hilm")

    return show


class Pages:
    """The app over one store: every page is a method that lays out its controls.

    Args:
        path: The store's folder.
        jobs: Where models are taken in; None leaves out everything that writes.
    """

    def __init__(self, path: Path, jobs: Jobs | None) -> None:
        self._path, self._jobs = path, jobs

    @property
    def _store(self) -> hilm.Store:
        return hilm.Store(self._path)  # anew each time: it may be replaced while it is served

    def build(self) -> Any:
        """Make all pages."""
        pages = {"Search": self._search, "Lineage": self._lineage, "Diff": self._diff, "Parity": self._parity}
        pages |= {"Jobs": self._running} if self._jobs else {}
        with gr.Blocks(title="hilm", analytics_enabled=False, fill_width=True) as demo:
            gr.Navbar(main_page_name=MAIN)
            self._library(demo)
        for name, page in (pages | {"Model": self._model}).items():
            with demo.route(name, name.lower(), show_in_navbar=name in pages):
                gr.Navbar(main_page_name=MAIN)
                page(demo)
        return demo.queue(default_concurrency_limit=4, max_size=64)

    def _library(self, demo: Any) -> None:
        if self._jobs is not None:
            table = self._adding(self._jobs)
        with gr.Row():
            needle = gr.Textbox(label="Filter", placeholder="part of a name, or a kind of reel")
            order = gr.Dropdown(list(views.SORTS), value="name", label="Sort by")
        listing = told(lambda *asked: show_library(views.view_library(self._store, *asked)))
        shown = _html()
        demo.load(listing, [needle, order], shown, api_name="library")
        for control in (needle, order):
            control.change(listing, [needle, order], shown, show_progress="hidden", api_name=False)
        if self._jobs is not None:
            self._watch(demo, self._jobs, table, listing, [needle, order], [shown])

    def _adding(self, jobs: Jobs) -> Any:
        """Controls that start a job; what happens is told in the table below them."""
        with gr.Row(equal_height=True):
            model = gr.Textbox(
                label="Add a model", placeholder="a folder or file of this machine, or a Hub id", scale=4
            )
            mode = gr.Dropdown(
                [
                    ("a reel with every bit", MODES[0]),
                    ("a small reel", MODES[1]),
                    ("only its fingerprint", MODES[2]),
                ],
                label="Keep",
                scale=2,
            )
            button = gr.Button("Add", variant="primary", scale=1, min_width=120)
        problem, table = _html(), _html(CANCEL)

        @told
        def problem_of(model: str, mode: str) -> str:
            jobs.start(model.strip(), mode)
            return ""

        def start(model: str, mode: str) -> tuple[Any, ...]:
            return problem_of(model, mode), told(show_jobs)(jobs.list())

        for event in (button.click, model.submit):
            name = "add" if event == button.click else False
            event(start, [model, mode], [problem, table], api_name=name)
        return table

    def _running(self, demo: Any) -> None:
        gr.Markdown("# Models being added")
        assert self._jobs is not None  # noqa: S101 - build asks
        self._watch(demo, self._jobs, _html(CANCEL))

    def _watch(
        self,
        demo: Any,
        jobs: Jobs,
        table: Any,
        listing: Callable[..., str] = str,
        asked: Sequence[Any] = (),
        shown: Sequence[Any] = (),
    ) -> None:
        """Keep the table of jobs up to date; when one has ended, the listing too."""
        seen = gr.State(None)

        def tick(before: Sequence[Job] | None, *asked: str) -> tuple[Any, ...]:
            now = jobs.list()
            ended, known = ([job.number for job in kept if not job.active] for kept in (now, before or ()))
            news = [listing(*asked) if ended != known else gr.skip() for _ in shown]
            return told(show_jobs)(now) if now != before else gr.skip(), now, *news

        def cancel(event: gr.EventData) -> str:
            jobs.cancel(int(event.job))
            return told(show_jobs)(jobs.list())

        cancel.__annotations__["event"] = gr.EventData  # it is looked for by its type, not by its name
        for event in (demo.load, gr.Timer(0.5).tick):
            event(tick, [seen, *asked], [table, seen, *shown], show_progress="hidden", api_name=False)
        table.click(cancel, None, table, show_progress="hidden", api_name=False)

    def _model(self, demo: Any) -> None:
        @told
        def page(name: str, tensor: str, first: str) -> str:
            found = views.view_model(self._store, name, tensor)
            drawn = read_tensor(self._path, name, found.chosen) if found.chosen else None
            return show_model(found, drawn, int(first) if first.isascii() and first.isdigit() else 0)

        _on_load(demo, page, _html(), "name", "tensor", "first")

    def _search(self, demo: Any) -> None:
        with gr.Row(equal_height=True):
            model = self._choose("Model of the store", demo)
            method = gr.Dropdown(METHODS, label="Method")
            top = gr.Slider(1, 100, value=10, step=1, label="At most")
            button = gr.Button("Search", variant="primary", scale=0, min_width=140)
        with gr.Accordion("Search with a file instead", open=False):
            upload = gr.File(label="A safetensors file of at most 10 MiB", file_types=[".safetensors"])
        shown = _html()

        @told
        def page(name: str, method: str, top: float) -> str:
            if not name:
                return tag("p", "Choose a model to find its relatives by its weights.")
            return show_relatives(
                self._store.search(views.known(self._store, name), method=method, top_k=int(top)), known=True
            )

        @told
        def sent(place: str | None) -> str:
            return show_relatives(self._received(Path(place)), known=False) if place else Markup()

        button.click(page, [model, method, top], shown, api_name="search")
        upload.change(sent, upload, shown, api_name="search_file")
        _on_load(demo, lambda name: (name or None, page(name, "hybrid", 10)), [model, shown], "model")

    def _received(self, path: Path) -> dict[str, Any]:
        """Search with a file that was sent, and delete it; no place of this machine is told."""
        try:
            if path.suffix != ".safetensors":
                raise InputError(
                    "only safetensors files are read here", hint="hilm search reads other formats"
                )
            return self._store.search(path)
        except HilmError as error:
            error.message = error.message.replace(str(path), path.name).replace(str(path.parent), "")
            raise
        finally:
            path.unlink(missing_ok=True)

    def _lineage(self, demo: Any) -> None:
        page = told(lambda name: show_family(views.view_family(self._store, name), name))
        model, shown = self._choose("Family of", demo), _html()
        model.input(page, model, shown, api_name="lineage")
        _on_load(demo, lambda name: (name or None, page(name)), [model, shown], "model")

    def _diff(self, demo: Any) -> None:
        with gr.Row(equal_height=True):
            pair = [self._choose(label, demo) for label in ("From", "To")]
            button = gr.Button("Compare", variant="primary", scale=0, min_width=140)
        shown = _html()

        @told
        def page(a: str, b: str) -> str:
            if not (a and b):
                return tag("p", "Choose two models to see where they part, layer by layer.")
            names = (views.known(self._store, name) for name in (a, b))
            return show_difference(a, b, hilm.diff(*names, store=self._store))

        button.click(page, pair, shown, api_name="diff")
        _on_load(demo, lambda a, b: (a or None, b or None, page(a, b)), [*pair, shown], "a", "b")

    def _parity(self, demo: Any) -> None:
        upload, shown = gr.File(label="A report: hilm parity run … --json", file_types=[".json"]), _html()

        @told
        def page(name: str) -> str:
            listed = show_reports(views.list_reports(self._store))
            return join([listed, show_report(name, views.view_report(self._store, name))]) if name else listed

        @told
        def sent(place: str | None) -> str:
            return show_report(Path(place).name, views.read_report(Path(place))) if place else Markup()

        upload.change(sent, upload, shown, api_name="parity_file")
        _on_load(demo, page, shown, "name")

    def _choose(self, label: str, demo: Any) -> Any:
        """A list of the models there are when the page is opened."""
        chooser = gr.Dropdown([], label=label, allow_custom_value=True, filterable=True)

        def names() -> Any:
            try:
                return gr.Dropdown(choices=[row["model"] for row in self._store.list()["models"]])
            except (HilmError, OSError):
                return gr.Dropdown(choices=[])

        demo.load(names, None, chooser, show_progress="hidden", api_name=False)
        return chooser


def _html(script: str | None = None) -> Any:
    return gr.HTML(js_on_load=script, apply_default_css=False)


def _on_load(demo: Any, page: Callable[..., Any], outputs: Any, *names: str) -> None:
    """Show a page when it is opened, with these parts of its address's query."""

    def load(request: Any) -> Any:
        return page(*(request.query_params.get(name, "") for name in names))

    load.__annotations__["request"] = gr.Request  # it is looked for by its type
    demo.load(load, None, outputs, api_name=False)
