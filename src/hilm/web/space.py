"""A folder that is a Hugging Face Space: the pages over a small catalog that can only be read."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import hilm
from hilm.errors import UsageError
from hilm.extras import require
from hilm.files import write_file
from hilm.weights.folder import is_hub_id, is_remote

if TYPE_CHECKING:
    from pathlib import Path

LIMIT = 1000
"""Models of a Space."""

APP = '''"""Pages over the catalog beside this file; other machines come in only where this is a Space."""

import os
from pathlib import Path

from hilm.web.server import serve

host = "0.0.0.0" if os.environ.get("SPACE_ID") else "127.0.0.1"
port = int(os.environ.get("PORT", "7860"))
serve(Path(__file__).parent / "store", host=host, port=port, insecure=True, read_only=True)
'''

README = """---
title: hilm
emoji: 🎞️
colorFrom: blue
colorTo: yellow
sdk: gradio
sdk_version: {gradio}
app_file: app.py
---

{models} models, recognised by their weights: search them, see their lineage. These are only fingerprints,
neither weights nor reels. Made by `hilm serve --export-space`.
"""


def export_space(store: hilm.Store, out: Path) -> dict[str, Any]:
    """Write a Space: ``app.py``, pinned ``requirements.txt``, ``README.md`` and a catalog of fingerprints.

    Folders of this machine are left out of the catalog.

    Args:
        store: What to show.
        out: A new or empty folder.

    Returns:
        ``space``: the folder; ``models``: how many.

    Raises:
        UsageError: The folder holds something, or the store nothing or too much.
        MissingExtra: Gradio, whose version is pinned, is not installed.
        StorageError: It cannot be written.
    """
    require("gradio")
    models = store.catalog.models() if store.exists else []
    if not 0 < len(models) <= LIMIT:
        raise UsageError(f"{len(models):,} models; a Space shows 1 to {LIMIT:,}", hint="--storage-dir DIR")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} is not an empty folder", hint="give a new one")
    shown = hilm.Store(out / "store")
    shown.path.mkdir(parents=True, exist_ok=True)
    shown.make()
    prints = store.catalog.rows("fingerprints", {"content_key": {row["content_key"] for row in models}})
    shown.catalog.commit({"fingerprints": prints, "models": [_without_places(row) for row in models]})
    gradio = version("gradio")
    texts = {
        "app.py": APP,
        "README.md": README.format(gradio=gradio, models=len(models)),
        "requirements.txt": f"hilm[web]=={hilm.__version__}\ngradio=={gradio}\n",
    }
    for name, text in texts.items():
        write_file(out / name, text.encode())
    return {"space": str(out), "models": len(models)}


def _without_places(row: dict[str, Any]) -> dict[str, Any]:
    """A model's row that names no folder of this machine."""
    uri, declared = row["uri"], row["declared_base"]
    return row | {
        "uri": uri if is_remote(uri) else row["name"],
        "declared_base": [base for base in declared if is_hub_id(base)] if declared else declared,
    }
