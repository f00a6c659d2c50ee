"""The server: who may come in, pictures and films, and the pages."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import hilm
from hilm.errors import HilmError, UsageError
from hilm.extras import require
from hilm.web import pictures
from hilm.web.access import LOOPBACK, Guard
from hilm.web.jobs import Jobs
from hilm.web.pages.model import LARGE, THUMBNAIL

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

    Users = Mapping[str, tuple[bytes, bytes]]


def serve(
    path: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 7860,
    users: Users | None = None,
    insecure: bool = False,
    read_only: bool = False,
    announce: Callable[[str], None] = print,
) -> None:
    """Serve a store until interrupted.

    Args:
        path: The store's folder.
        host: Where to listen; other machines reach only another than the default.
        port: The same; 0 takes a free one.
        users: Of `hilm.web.access.read_users`: who may come in; None is everybody.
        insecure: Let other machines in without passwords; they can only read.
        read_only: Leave out everything that writes.
        announce: Called with the address once it answers.

    Raises:
        MissingExtra: Gradio is not installed.
        NotAStore: The folder holds something else.
        UsageError: Other machines could come in without passwords, or the port is taken.
    """
    if host not in LOOPBACK and users is None and not insecure:
        raise UsageError(
            f"other machines could come in at {host} without a password",
            hint="--auth-file FILE, or --insecure to let everybody read",
        )
    hilm.Store(
        path
    ).list()  # what is wrong with it is raised here, and the first page need not load the catalog
    uvicorn: Any = require("uvicorn")
    with tempfile.TemporaryDirectory(prefix="hilm-uploads-") as uploads, _listen(host, port) as listening:
        app = make_server(
            path,
            users=users,
            hosts=LOOPBACK if host in LOOPBACK else None,
            read_only=read_only or (host not in LOOPBACK and users is None),
            uploads=uploads,
        )
        name = f"[{host}]" if ":" in host else host
        announce(f"http://{name}:{listening.getsockname()[1]}/")
        config = uvicorn.Config(
            app, log_level="warning", server_header=False, access_log=False, timeout_graceful_shutdown=1
        )
        # Open pages keep connections that never end; that they are cut at the end is no error.
        logging.getLogger("uvicorn.error").addFilter(
            lambda told: "graceful shutdown" not in told.getMessage()
        )
        uvicorn.Server(config).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else error
        raise UsageError(
            f"cannot listen at {host}, port {port}: {reason}", hint="--port N, or 0 for a free one"
        ) from error


def make_server(
    path: Path, *, users: Users | None, hosts: frozenset[str] | None, read_only: bool, uploads: str
) -> Guard:
    """The ASGI application that `serve` runs; models being taken in are cancelled when it ends."""
    os.environ["GRADIO_TEMP_DIR"] = uploads
    from hilm.web.app import mount  # noqa: PLC0415 - it imports Gradio, which reads the line above

    fastapi: Any = require("fastapi")
    jobs = None if read_only else Jobs(path)

    @asynccontextmanager
    async def life(_: object) -> AsyncIterator[None]:
        yield
        if jobs is not None:
            jobs.close()

    server = fastapi.FastAPI(lifespan=life, docs_url=None, redoc_url=None, openapi_url=None)
    add_media(server, path)
    return Guard(mount(server, path, jobs), users, hosts)


def add_media(server: Any, path: Path) -> None:
    """Add /film, /picture and /values: models and tensors are looked up by their names."""
    answers: Any = require("fastapi.responses")

    def missing(_: object, error: HilmError) -> Any:
        del error  # what it says may name folders of this machine
        return answers.PlainTextResponse("there is nothing of that name", 404)

    def film(model: str) -> Any:
        return answers.FileResponse(hilm.Store(path).reel(model), media_type="video/mp4")

    def picture(model: str, tensor: str, side: int = LARGE) -> Any:
        drawable = pictures.read_tensor(path, model, tensor)
        png = pictures.draw_png(drawable, LARGE if side > THUMBNAIL else THUMBNAIL)
        return answers.Response(
            png, media_type="image/png", headers={"Cache-Control": "private, max-age=300"}
        )

    def values(model: str, tensor: str) -> Any:
        found = pictures.lay_values(pictures.read_tensor(path, model, tensor))
        return answers.Response(found, media_type="application/octet-stream")

    server.add_exception_handler(HilmError, missing)
    for route in (film, picture, values):
        server.get(f"/{route.__name__}", response_model=None)(route)
