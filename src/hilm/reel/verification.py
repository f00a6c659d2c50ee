"""Verify: is every byte of a reel what was written, and is it this checkpoint?"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from hilm.errors import HeaderError, VerificationError
from hilm.weights.dtypes import DTYPES, decode
from hilm.weights.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from hilm.reel.decoder import Reel
    from hilm.weights.checkpoint import Checkpoint


@dataclass(slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        checked: Regions, tensors, frames and files that were looked at.
        bad: What is damaged or different, in words; empty when all is well.
        max_abs: Largest difference from the checkpoint compared with, in weight units; None without one.
        noise: Sum of squared differences from it.
        power: Sum of its squared values.
    """

    checked: int = 0
    bad: list[str] = field(default_factory=list)
    max_abs: float | None = None
    noise: float = 0.0
    power: float = 0.0

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or different."""
        return not self.bad

    @property
    def nmse(self) -> float | None:
        """Energy of the difference over that of the checkpoint; None when nothing was compared."""
        if self.max_abs is None:
            return None
        return self.noise / self.power if self.power else float(self.noise > 0)

    def compare(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        """Add the difference of two runs of values; values that are NaN in both differ by nothing."""
        wide, truth = found.astype(np.float64), expected.astype(np.float64)
        same = (wide == truth) | (np.isnan(wide) & np.isnan(truth))
        with np.errstate(invalid="ignore"):
            difference = np.where(same, 0.0, wide - truth)
        worst = float(np.max(np.abs(difference), initial=0.0))
        self.max_abs = max(self.max_abs or 0.0, worst)
        self.noise += float(difference @ difference)
        self.power += float(np.nansum(truth * truth))


def verify_reel(
    reel: Reel, against: Checkpoint | None = None, tick: Callable[[str], None] = lambda _: None
) -> VerifyReport:
    """Check every byte of the file, decode everything in it, and compare it with a checkpoint.

    Args:
        reel: An open reel.
        against: A checkpoint every stored bit must agree with.
        tick: Called with the name of everything that was checked.
    """
    report = VerifyReport()
    report.bad += reel.file.check_coverage()
    report.checked += len(reel.file.index) + 1
    if against is not None:
        report.max_abs = 0.0
    if reel.mode == "sample":
        _verify_samples(reel, against, report, tick)
    else:
        _verify_files(reel, against, report, tick)
    return report


def _verify_files(
    reel: Reel, against: Checkpoint | None, report: VerifyReport, tick: Callable[[str], None]
) -> None:
    source, seen = reel.file.manifest["source"], set()
    for file in source["files"] if source else []:
        digest, intact = hashlib.sha256(), True
        for segment in file["segments"]:
            label = f"tensor {segment[1]}" if segment[0] == "tensor" else file["name"]
            seen.add(segment[1])
            pieces = reel.segment(segment)
            if against is not None and segment[0] == "tensor":
                pieces = _compared(reel, segment[1], pieces, against, report)
            fault = _consume(pieces, digest.update)
            if fault:
                report.bad.append(f"{label}: {fault}")
                intact = False
            report.checked += 1
            tick(label)
        if intact and digest.hexdigest() != file["sha256"]:
            report.bad.append(f"file {file['name']}: its SHA-256 is another one")
    if against is not None:
        _compare_names(reel, against, report)


def _consume(pieces: Iterable[NDArray[np.uint8]], update: Callable[[memoryview], None]) -> str | None:
    """Run through all pieces; say what went wrong, if anything did."""
    try:
        for piece in pieces:
            update(piece.data)
    except (VerificationError, HeaderError) as error:
        return error.message
    return None


def _compared(
    reel: Reel, name: str, pieces: Iterable[NDArray[np.uint8]], against: Checkpoint, report: VerifyReport
) -> Iterator[NDArray[np.uint8]]:
    """Pass the pieces of one tensor on, comparing each with the checkpoint's own bytes."""
    dtype, position, differs = DTYPES[reel.tensors[name]["dtype"]], 0, False
    info = against.tensors.get(name)
    if info is None or (info.dtype, list(info.shape)) != (dtype.name, reel.tensors[name]["shape"]):
        yield from pieces  # reported with the names
        return
    for piece in pieces:
        start, stop = position * 8 // dtype.bits, (position + len(piece)) * 8 // dtype.bits
        expected = against.words(name, start, stop)
        position += len(piece)
        if dtype.is_weight:
            report.compare(_decoded(dtype.name, piece), _decoded(dtype.name, expected))
        differs |= not np.array_equal(piece, expected)
        yield piece
    if differs:
        report.bad.append(f"tensor {name} differs from {against.name}")


def _decoded(dtype: str, words: NDArray[np.uint8]) -> NDArray[np.float32]:
    out = np.empty(len(words) * 8 // DTYPES[dtype].bits, np.float32)
    decode(DTYPES[dtype], words, out)
    return out


def _compare_names(reel: Reel, against: Checkpoint, report: VerifyReport) -> None:
    for name in sorted(reel.tensors.keys() ^ against.tensors.keys()):
        where = "the reel" if name in reel.tensors else against.name
        report.bad.append(f"tensor {name} is only in {where}")
    for name in reel.tensors.keys() & against.tensors.keys():
        entry, info = reel.tensors[name], against.tensors[name]
        if (entry["dtype"], entry["shape"]) != (info.dtype, list(info.shape)):
            report.bad.append(f"tensor {name} is {info.dtype} {list(info.shape)} in {against.name}")


def _verify_samples(
    reel: Reel, against: Checkpoint | None, report: VerifyReport, tick: Callable[[str], None]
) -> None:
    truth = position = None
    for sample in reel.samples:
        label = f"frame {sample['frame_index']}"
        report.checked += 1
        tick(label)
        try:
            values = reel.sample_values(sample)
        except (VerificationError, HeaderError) as error:
            report.bad.append(f"{label}: {error.message}")
            continue
        if against is None or sample["model_id"] != against.name:
            continue
        if truth is None:
            truth, position = Selection.of(against, **sample["rule"]).values(against), 0
        expected = truth[position : position + len(values)]
        position += len(values)
        report.compare(values, expected)
        if values.tobytes() != expected.tobytes():
            report.bad.append(f"{label} differs from {against.name}")
    if against is not None and truth is None:
        report.bad.append(f"no frame shows {against.name}")
