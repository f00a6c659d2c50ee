"""Reels on their own: decode, read one tensor, verify."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.files import write_file
from hilm.reel.decoder import decode_files
from hilm.reel.verification import verify_reel
from hilm.store.bases import open_reel
from hilm.store.getting import safetensors_file
from hilm.store.reading import no_progress
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray

    from hilm.reel.decoder import Reel
    from hilm.store.reading import Progress
    from hilm.store.store import Store


def decode(
    reel: str | PathLike[str],
    out_dir: str | PathLike[str],
    *,
    tensor: str | None = None,
    base: str | PathLike[str] | None = None,
    store: Store | None = None,
) -> dict[str, Any]:
    """Rebuild the files a reel was made from, or one tensor of them; rounded weights stay rounded.

    Args:
        reel: A reel of whole tensors.
        out_dir: New or empty folder; complete or not there afterwards.
        tensor: Write only this tensor, as a safetensors file in ``out_dir``; quantised blocks as float32.
        base: What a delta was taken from: a checkpoint, a reel, or the name of a model in the store; looked
            up in the store when None.
        store: Where to look; the default store when None.

    Returns:
        ``out`` (folder or file), ``tensors`` (how many), ``files``, ``sha256_ok``, and ``nmse``, the error of
        rounded weights as it was measured when they were encoded.

    Raises:
        NotAReel: The file is something else.
        VerificationError: The reel is damaged, or the base is another one.
        UsageError: The folder is not empty, there is no such tensor, or the base is nowhere.
    """
    out = Path(out_dir)
    with open_reel(reel, base, store) as opened:
        if tensor is None:
            files = decode_files(opened, out)
            nmse = opened.file.manifest["totals"].get("nmse", 0.0)
            return _describe(out, len(opened.tensors), files, nmse)
        path = _write_tensor(opened, tensor, out)
        error = opened.tensors[tensor].get("error")
        return _describe(path, 1, [path.name], error["nmse"] if error else 0.0)


def _describe(out: Path, tensors: int, files: list[str], nmse: float) -> dict[str, Any]:
    return {"out": str(out), "tensors": tensors, "files": files, "sha256_ok": True, "nmse": nmse}


def _write_tensor(reel: Reel, name: str, folder: Path) -> Path:
    entry = reel.entry(name)
    path = folder / (re.sub(r"[^\w.-]", "_", name).lstrip(".")[:200] + ".safetensors")
    write_file(path, *safetensors_file(name, entry["dtype"], entry["shape"], reel.words(name)))
    return path


def read_tensor(
    reel: str | PathLike[str],
    name: str,
    rows: tuple[int, int] | None = None,
    *,
    base: str | PathLike[str] | None = None,
    store: Store | None = None,
) -> NDArray[np.float32]:
    """Read one stored tensor of a reel as float32 in its own shape; nothing else is decoded.

    Packed weights are archived as the parts that are stored: codes and scales, not the values they stand for.

    Args:
        reel: A file, or an http or https URL.
        name: The tensor.
        rows: First and last-plus-one row along its first axis; all by default.
        base: As of `decode`.
        store: As of `decode`.

    Raises:
        NotAReel: The file is something else.
        UsageError: There is no such tensor, or the base is nowhere.
        VerificationError: The tensor is damaged, or the base is another one.
    """
    with open_reel(reel, base, store) as opened:
        return opened.tensor(name, rows)


def verify(
    reel: str | PathLike[str],
    *,
    against: str | PathLike[str] | None = None,
    base: str | PathLike[str] | None = None,
    store: Store | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Check every byte of a reel, decode all of it, and compare it with a checkpoint.

    Args:
        reel: A reel of any mode.
        against: A checkpoint that every stored bit must agree with, and that rounded weights were made from.
        base: As of `decode`.
        store: As of `decode`.
        progress: Called with what was done, how much there is, and its name.

    Returns:
        ``ok``, ``checked`` (how many parts), ``bad`` (what is damaged or different), ``max_abs`` and ``nmse``
        of the difference from the checkpoint, None without one.

    Raises:
        NotAReel: The file is something else.
        UsageError: The base of a delta is nowhere.
        VerificationError: It is so damaged that it cannot be opened.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(open_reel(reel, base, store))
        checkpoint = stack.enter_context(open_checkpoint(against)) if against is not None else None
        total, done = max(len(opened.tensors) + len(opened.samples), 1), 0

        def tick(label: str) -> None:
            nonlocal done
            done += 1
            progress(min(done, total), total, label)

        report = verify_reel(opened, checkpoint, tick)
    return {
        "ok": report.ok,
        "checked": report.checked,
        "bad": report.bad,
        "max_abs": report.max_abs,
        "nmse": report.nmse,
    }
