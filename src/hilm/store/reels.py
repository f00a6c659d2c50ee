"""Reels on their own: decode, read one tensor, verify."""

from __future__ import annotations

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hilm.reel.decoder import Reel, decode_files
from hilm.reel.verification import verify_reel
from hilm.store.files import write_file
from hilm.store.getting import safetensors_file
from hilm.store.reading import no_progress
from hilm.weights import open_checkpoint

if TYPE_CHECKING:
    from os import PathLike

    import numpy as np
    from numpy.typing import NDArray

    from hilm.store.reading import Progress


def decode(
    reel: str | PathLike[str], out_dir: str | PathLike[str], *, tensor: str | None = None
) -> dict[str, Any]:
    """Rebuild the files a reel was made from, or one tensor of them.

    Args:
        reel: A reel of mode ``archive``.
        out_dir: New or empty folder; complete or not there afterwards.
        tensor: Write only this tensor, as a safetensors file in ``out_dir``; quantised blocks as float32.

    Returns:
        ``out`` (folder or file), ``tensors`` (how many), ``files``, ``sha256_ok``.

    Raises:
        NotAReel: The file is something else.
        VerificationError: The reel is damaged.
        UsageError: The folder is not empty, or there is no such tensor.
    """
    out = Path(out_dir)
    with Reel.open(reel) as opened:
        if tensor is None:
            files = decode_files(opened, out)
            return {"out": str(out), "tensors": len(opened.tensors), "files": files, "sha256_ok": True}
        path = _write_tensor(opened, tensor, out)
        return {"out": str(path), "tensors": 1, "files": [path.name], "sha256_ok": True}


def _write_tensor(reel: Reel, name: str, folder: Path) -> Path:
    entry = reel.entry(name)
    path = folder / (re.sub(r"[^\w.-]", "_", name).lstrip(".")[:200] + ".safetensors")
    write_file(path, *safetensors_file(name, entry["dtype"], entry["shape"], reel.words(name)))
    return path


def read_tensor(
    reel: str | PathLike[str], name: str, rows: tuple[int, int] | None = None
) -> NDArray[np.float32]:
    """Read one tensor of an archive as float32 in its own shape; nothing else is decoded.

    Args:
        reel: A file, or an http or https URL.
        name: The tensor.
        rows: First and last-plus-one row along its first axis; all by default.

    Raises:
        NotAReel: The file is something else.
        UsageError: There is no such tensor.
        VerificationError: The tensor is damaged.
    """
    with Reel.open(reel) as opened:
        return opened.tensor(name, rows)


def verify(
    reel: str | PathLike[str],
    *,
    against: str | PathLike[str] | None = None,
    progress: Progress = no_progress,
) -> dict[str, Any]:
    """Check every byte of a reel, decode all of it, and compare it with a checkpoint.

    Args:
        reel: A reel of any mode.
        against: A checkpoint that every stored bit must agree with.
        progress: Called with what was done, how much there is, and its name.

    Returns:
        ``ok``, ``checked`` (how many parts), ``bad`` (what is damaged or different), ``max_abs`` and ``nmse``
        of the difference from the checkpoint, None without one.

    Raises:
        NotAReel: The file is something else.
        VerificationError: It is so damaged that it cannot be opened.
    """
    with ExitStack() as stack:
        opened = stack.enter_context(Reel.open(reel))
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
