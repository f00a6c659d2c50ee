"""What the store knows of one model, and pictures of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, NetworkError, UsageError
from hilm.reel.decoder import Reel
from hilm.reel.pictures import draw_checkpoint
from hilm.reel.preview import contact_sheets
from hilm.store.bases import find_chain, is_reel
from hilm.store.files import write_file
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from os import PathLike

    from hilm.store.store import Store


def show_model(
    store: Store,
    model: str,
    *,
    chain: bool,
    sheet: str | PathLike[str] | None,
    film: str | PathLike[str] | None,
) -> dict[str, Any]:
    """See ``Store.show``."""
    row = store.row(model)
    entries = store.catalog.rows("reels", {"name": model})
    prints = store.catalog.rows("fingerprints", {"content_key": row["content_key"]})
    paths = [store.reels / entry["uri"] for entry in entries]
    document = {
        "model": row["name"],
        "uri": row["uri"],
        "parameters": row["parameters"],
        "bytes": row["bytes"],
        "architecture": row["architecture"],
        "roles": {r["role"]: r["parameters"] for r in row["role_counts"]},
        "content_key": row["content_key"].hex(),
        "coverage": prints[0]["coverage"] if prints else None,
        "reel": str(paths[-1]) if paths else None,
        "reels": [
            {"reel": str(p), "mode": e["mode"], "bytes": e["bytes"], "frames": e["frames"]}
            for p, e in zip(paths, entries, strict=True)
        ],
        "notes": row["notes"],
    }
    if chain and paths:
        document["chain"] = [_describe_place(place) for place in find_chain(store, str(paths[-1]))]
    if sheet is not None:
        document["sheets"] = [str(p) for p in _write_sheets(row, Path(sheet))]
    if film is not None:
        document["film"] = str(_write_film(model, paths, Path(film)))
    return document


def _describe_place(place: str) -> dict[str, Any]:
    """One link of a chain: a reel with what it is and costs, or the checkpoint at its end."""
    if not is_reel(place):
        return {"uri": place, "mode": "checkpoint"}
    with Reel.open(place) as reel:
        totals, pinned = reel.file.manifest["totals"], reel.pinned
        document = {"uri": place, "mode": reel.mode, "bits_per_weight": totals["bits_per_weight"]}
        return document | ({"base": pinned["hint"]} if pinned else {})


def _write_sheets(row: dict[str, Any], out: Path) -> list[Path]:
    """Draw every tensor of the model's weights; further sheets are numbered."""
    try:
        checkpoint = open_checkpoint(row["uri"])
    except (InputError, NetworkError) as error:
        raise UsageError(
            f"the weights of {row['name']} are not at {row['uri']} any more",
            hint="hilm decode its reel first",
        ) from error
    written = []
    with checkpoint:
        cells = ((info.name, frame) for info, frame, _ in draw_checkpoint(checkpoint))
        sheets = contact_sheets(cells, model=row["name"], parameters=row["parameters"])
        for number, png in enumerate(sheets):
            path = out if number == 0 else out.with_stem(f"{out.stem}-{number + 1}")
            write_file(path, png)
            written.append(path)
    return written


def _write_film(model: str, paths: list[Path], out: Path) -> Path:
    """Take the front video of the model's latest reel as a file of its own."""
    for path in reversed(paths):
        with Reel.open(path) as reel:
            if reel.file.manifest["front"] is not None:
                write_file(out, reel.file.front)
                return out
    raise UsageError(f"no reel of {model} has a film", hint="hilm encode makes one")
