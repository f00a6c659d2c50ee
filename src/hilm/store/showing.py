"""What the store knows of one model, and pictures of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.errors import InputError, NetworkError, UsageError
from hilm.files import write_file
from hilm.reel.decoder import Reel
from hilm.reel.heatmap import draw_heatmap
from hilm.reel.pictures import drawables
from hilm.reel.preview import contact_sheets
from hilm.store.bases import find_chain, is_reel, open_reel
from hilm.weights import open_checkpoint
from hilm.weights.dtypes import DTYPES
from hilm.weights.statistics import LayerStatistics

if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager
    from os import PathLike

    from hilm.reel.schema import Tensor
    from hilm.store.reading import Progress
    from hilm.store.store import Store
    from hilm.weights import Checkpoint


def show_model(
    store: Store,
    model: str,
    *,
    chain: bool,
    sheet: str | PathLike[str] | None,
    film: str | PathLike[str] | None,
    picture: str | PathLike[str] | None,
    figure: str,
    progress: Progress,
) -> dict[str, Any]:
    """See ``Store.show``."""
    if is_reel(model) and picture is None:
        return _show_reel(store, model, chain=chain, sheet=sheet, film=film)
    known = store.exists and store.catalog.models({"name": model})
    if known or film is not None or (sheet is None and picture is None):
        document, paths = _describe(store, store.row(model))
    else:
        document, paths = _describe_elsewhere(store.locate(model)), []
    if chain and paths:
        document["chain"] = [_describe_place(place) for place in find_chain(store, str(paths[-1]))]
    if sheet is not None:
        weights = _open_weights(document)
        document["sheets"] = _write_sheets(weights, document["model"], document["parameters"], Path(sheet))
    if picture is not None:
        statistics = _measure(document, progress)
        write_file(Path(picture), draw_heatmap(statistics, model=document["model"], figure=figure))
        document |= {"picture": str(picture), "figure": figure}
    if film is not None:
        document["film"] = str(_write_film(model, paths, Path(film)))
    return document


def _describe(store: Store, row: dict[str, Any]) -> tuple[dict[str, Any], list[Path]]:
    """What the store knows of a model, and its reels."""
    entries = store.catalog.rows("reels", {"name": row["name"]})
    prints = store.catalog.rows("fingerprints", {"content_key": row["content_key"]})
    paths = [store.reels / entry["uri"] for entry in entries]
    return {
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
    }, paths


def _describe_elsewhere(target: str) -> dict[str, Any]:
    """What is told of a model that is not in the store."""
    with open_checkpoint(target) as checkpoint:
        return {
            "model": checkpoint.name,
            "uri": checkpoint.uri,
            "parameters": checkpoint.total_parameters,
            "bytes": sum(file.size for file in checkpoint.files),
        }


def _open_weights(document: dict[str, Any]) -> Checkpoint:
    try:
        return open_checkpoint(document["uri"])
    except (InputError, NetworkError) as error:
        raise UsageError(
            f"the weights of {document['model']} are not at {document['uri']} any more",
            hint="hilm show REEL draws its reel",
        ) from error


def _measure(document: dict[str, Any], progress: Progress) -> LayerStatistics:
    """Measure a model where it was, else as its archive holds it."""
    statistics, done = LayerStatistics(), 0
    try:
        checkpoint = _open_weights(document)
    except UsageError:
        archives = [reel["reel"] for reel in document.get("reels", ()) if reel["mode"] == "archive"]
        if not archives:
            raise
        _measure_reel(archives[-1], statistics)
        return statistics
    with checkpoint:
        for block in checkpoint.blocks():
            statistics.update(block.info.name, block.info.shape, block.values)
            done += block.stop - block.start
            progress(done, checkpoint.total_parameters, block.info.name)
    return statistics


def _measure_reel(path: str, statistics: LayerStatistics) -> None:
    with Reel.open(path) as reel:
        for name, entry in reel.tensors.items():
            if entry.get("alias_of") is None and DTYPES[entry["dtype"]].is_weight:
                statistics.update(name, tuple(entry["shape"]), reel.tensor(name).reshape(-1))


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
            "tensors": [_describe_tensor(entry) for entry in manifest["tensors"]],
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


def _describe_tensor(entry: Tensor) -> dict[str, Any]:
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
