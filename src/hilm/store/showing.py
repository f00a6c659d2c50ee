"""What the store knows of one model, and pictures of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, NetworkError, UsageError
from hilm.reel.decoder import Reel
from hilm.reel.pictures import drawables
from hilm.reel.preview import contact_sheets
from hilm.store.bases import find_chain, is_reel, open_reel
from hilm.store.files import write_file
from hilm.weights import open_checkpoint
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from os import PathLike

    from hilm.reel.schema import Tensor
    from hilm.store.store import Store
    from hilm.weights import Checkpoint


def show_model(
    store: Store,
    model: str,
    *,
    chain: bool,
    sheet: str | PathLike[str] | None,
    film: str | PathLike[str] | None,
) -> dict[str, Any]:
    """See ``Store.show``."""
    if is_reel(model):
        return _show_reel(store, model, chain=chain, sheet=sheet, film=film)
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
        document["sheets"] = _write_sheets(_weights(row), row["name"], row["parameters"], Path(sheet))
    if film is not None:
        document["film"] = str(_write_film(model, paths, Path(film)))
    return document


def _show_reel(
    store: Store,
    reel: str,
    *,
    chain: bool,
    sheet: str | PathLike[str] | None,
    film: str | PathLike[str] | None,
) -> dict[str, Any]:
    """What is in a reel, tensor by tensor; optionally its contact sheet and film."""
    with Reel.open(reel) as opened:
        manifest = opened.file.manifest
        document = {
            "reel": reel,
            "mode": opened.mode,
            **manifest["totals"],
            "samples": [sample["model_id"] for sample in opened.samples],
            "tensors": [_describe(entry) for entry in manifest["tensors"]],
        }
    if chain:
        document["chain"] = [_describe_place(place) for place in find_chain(store, reel)]
    if sheet is not None:
        if not manifest["tensors"]:
            raise UsageError("a reel of samples has no tensors to draw", hint="--film writes its frames")
        source, weights = open_reel(reel, None, store), manifest["totals"]["weights"]
        document["sheets"] = _write_sheets(source, Path(reel).name, weights, Path(sheet))
    if film is not None:
        document["film"] = str(_write_film(reel, [reel], Path(film)))
    return document


def _describe(entry: Tensor) -> dict[str, Any]:
    """One line of the table of a reel's tensors; an alias has no bits of its own."""
    weights = DTYPES[entry["dtype"]].count(entry["nbytes"])
    return {
        "name": entry["name"],
        "dtype": entry["dtype"],
        "shape": entry["shape"],
        "coder": entry["coder"],
        "bytes": entry["bits"] // 8,
        "bits_per_weight": entry["bits"] / weights if weights else 0.0,
    }


def _describe_place(place: str) -> dict[str, Any]:
    """One link of a chain: a reel with what it is and costs, or the checkpoint at its end."""
    if not is_reel(place):
        return {"uri": place, "mode": "checkpoint"}
    with Reel.open(place) as reel:
        totals, pinned = reel.file.manifest["totals"], reel.pinned
        document = {"uri": place, "mode": reel.mode, "bits_per_weight": totals["bits_per_weight"]}
        return document | ({"base": pinned["hint"]} if pinned else {})


def _weights(row: dict[str, Any]) -> Checkpoint:
    try:
        return open_checkpoint(row["uri"])
    except (InputError, NetworkError) as error:
        raise UsageError(
            f"the weights of {row['name']} are not at {row['uri']} any more",
            hint="hilm show REEL draws its reel",
        ) from error


def _write_sheets(
    source: AbstractContextManager[Checkpoint | Reel], title: str, parameters: int, out: Path
) -> list[str]:
    """Draw every tensor of the source; further sheets are numbered."""
    written = []
    with source as opened:
        cells = ((tensor.name, tensor.draw()) for tensor in drawables(opened))
        for number, png in enumerate(contact_sheets(cells, model=title, parameters=parameters)):
            path = out if number == 0 else out.with_stem(f"{out.stem}-{number + 1}")
            write_file(path, png)
            written.append(str(path))
    return written


def _write_film(model: str, paths: Sequence[str | Path], out: Path) -> Path:
    """Take the front video of the model's latest reel as a file of its own."""
    for path in reversed(paths):
        with Reel.open(path) as reel:
            if reel.file.manifest["front"] is not None:
                write_file(out, reel.file.front)
                return out
    raise UsageError(f"no reel of {model} has a film", hint="hilm encode makes one")
