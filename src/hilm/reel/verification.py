"""Verify: is every byte of a reel what was written, and is it this checkpoint?"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, NotRequired, TypedDict

import numpy as np

from hilm.errors import HeaderError, UnsupportedFormat, UnsupportedVersion, UsageError, VerificationError
from hilm.reel.distortion import Distortion, mean_error
from hilm.reel.schema import find_fault
from hilm.weights.dtypes import DTYPES, decode
from hilm.weights.selection import Selection

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

    from hilm.reel.decoder import Reel
    from hilm.reel.schema import Sample, Tensor
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.tensor import TensorInfo

    Tick = Callable[[str], None]

_PIECE = 1 << 20  # bytes compared at a time
_ERRORS: Final = ("nmse", "max_abs", "cosine")


class _Rule(TypedDict):
    """How samples are chosen: the arguments of ``Selection.of``."""

    limit: NotRequired[int | None]
    layers: NotRequired[list[str] | None]
    exclude_layers: NotRequired[list[str] | None]


@dataclass(slots=True)
class VerifyReport:
    """What a verification found.

    Attributes:
        checked: Records, segments of files, tensors and frames that were looked at.
        bad: What is damaged or different, in words; empty when all is well.
        max_abs: Largest difference from the checkpoint compared with, in weight units, over all weights that
            both hold in one type and shape; infinite where a finite value stands against another kind. None
            without a checkpoint.
        noise: Sum of squared differences from it, rounded weights aside.
        power: Sum of its squared finite values, rounded weights aside.
        rounded: Entries of tensors with rounded weights, with the errors that were measured.
    """

    checked: int = 0
    bad: list[str] = field(default_factory=list)
    max_abs: float | None = None
    noise: float = 0.0
    power: float = 0.0
    rounded: list[Tensor] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged or different."""
        return not self.bad

    @property
    def nmse(self) -> float | None:
        """Energy of the difference over that of the checkpoint; None when nothing was compared.

        With rounded weights the mean of that over their tensors, as in a manifest's totals.
        """
        if self.max_abs is None:
            return None
        if self.rounded:
            return mean_error(self.rounded)
        if not self.power:
            return math.inf if self.noise else 0.0
        return self.noise / self.power

    def compare(self, found: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
        """Add the difference of two runs of values; values that are NaN in both differ by nothing."""
        with np.errstate(invalid="ignore"):  # signalling NaNs, and differences of infinities
            wide, truth = found.astype(np.float64), expected.astype(np.float64)
            same = (wide == truth) | (np.isnan(wide) & np.isnan(truth))
            difference = np.abs(np.where(same, 0.0, wide - truth))
        difference[np.isnan(difference)] = np.inf
        self.max_abs = max(self.max_abs or 0.0, float(np.max(difference, initial=0.0)))
        self.noise += float(np.square(difference).sum())
        self.power += float(np.square(truth[np.isfinite(truth)]).sum())


def verify_reel(reel: Reel, against: Checkpoint | None = None, tick: Tick = lambda _: None) -> VerifyReport:
    """Check every byte of the file, decode everything in it, and compare it with a checkpoint.

    Args:
        reel: An open reel.
        against: A checkpoint every stored bit must agree with. Rounded weights must have been made from
            its bits, and differ from them as far as the reel says. Of a reel of several models' samples, the
            frames that bear its name are compared.
        tick: Called with the name of everything that was checked.

    Raises:
        UnsupportedFormat: Samples were chosen by a rule this version does not know.
        SourceChanged: The checkpoint changed while it was read.
    """
    report = VerifyReport(checked=len(reel.file.index) + 1, max_abs=None if against is None else 0.0)
    report.bad += reel.file.check_coverage()
    if reel.mode == "sample":
        _verify_samples(reel, against, report, tick)
    else:
        _verify_files(reel, against, report, tick)
    if against is not None:
        against.check_unchanged()
    return report


def _verify_files(reel: Reel, against: Checkpoint | None, report: VerifyReport, tick: Tick) -> None:
    source, left = reel.file.manifest["source"], dict(reel.tensors)
    for file in source["files"] if source else []:
        digest, intact = hashlib.sha256(), True
        for segment in file["segments"]:
            label, pieces = file["name"], reel.segment(segment)
            if segment[0] == "tensor":
                left.pop(segment[1], None)
                label = f"tensor {segment[1]}"
                pieces = _compared(reel.tensors[segment[1]], pieces, against, report)
            intact &= _consume(pieces, digest.update, label, report)
            tick(label)
        if intact and digest.hexdigest() != file["sha256"]:
            report.bad.append(f"file {file['name']}: its SHA-256 is another one")
    for name, entry in left.items():  # tensors without bytes, and further names of those above
        if against is not None or entry.get("alias_of") is None:
            pieces = _compared(entry, reel.pieces(name), against, report)
            _consume(pieces, lambda _: None, f"tensor {name}", report)
    if against is not None:
        _compare_names(reel, against, report)


def _consume(
    pieces: Iterable[NDArray[np.uint8]],
    update: Callable[[memoryview], None],
    label: str,
    report: VerifyReport,
) -> bool:
    """Run through all pieces; report what goes wrong, and return whether nothing did."""
    report.checked += 1
    try:
        for piece in pieces:
            update(piece.data)
    except (VerificationError, HeaderError, UnsupportedVersion) as error:
        report.bad.append(f"{label}: {error.message}")
        return False
    return True


def _compared(
    entry: Tensor, pieces: Iterable[NDArray[np.uint8]], against: Checkpoint | None, report: VerifyReport
) -> Iterator[NDArray[np.uint8]]:
    """Pass the pieces of one tensor on, comparing each with the checkpoint's own bytes."""
    info = None if against is None else against.stored.get(entry["name"])
    if against is None or info is None or (info.dtype, list(info.shape)) != (entry["dtype"], entry["shape"]):
        yield from pieces  # reported with the names
        return
    position, rest = info.span.start, np.empty(0, np.uint8)
    comparison = _Rounded(entry, info) if "error" in entry else _Exact(entry, info)
    reader, unit = against.source(info), info.type.block_bytes
    for piece in pieces:
        yield piece
        whole = np.concatenate([rest, piece]) if len(rest) else piece  # slabs cut through quantised blocks
        step = max(_PIECE // unit, 1) * unit
        rest = whole[len(whole) // unit * unit :].copy()
        for start in range(0, len(whole) - len(rest), step):
            found = whole[start : min(start + step, len(whole) - len(rest))]
            expected = np.empty(len(found), np.uint8)
            reader.read_into(position, expected)
            position += len(found)
            comparison.add(found, expected, report)
    comparison.finish(against.name, report)


class _Exact:
    """Compares a tensor of which every bit was kept."""

    def __init__(self, entry: Tensor, info: TensorInfo) -> None:
        self._entry, self._info, self._differs = entry, info, False

    def add(self, found: NDArray[np.uint8], expected: NDArray[np.uint8], report: VerifyReport) -> None:
        self._differs |= not np.array_equal(found, expected)
        if self._info.is_weight:
            report.compare(_decoded(self._info.dtype, found), _decoded(self._info.dtype, expected))

    def finish(self, model: str, report: VerifyReport) -> None:
        if self._differs:
            report.bad.append(f"tensor {self._entry['name']} differs from {model}")


class _Rounded:
    """Compares a tensor of rounded weights, which differ as far as the manifest says."""

    def __init__(self, entry: Tensor, info: TensorInfo) -> None:
        self._entry, self._info = entry, info
        self._distortion, self._source = Distortion(), hashlib.sha256()

    def add(self, found: NDArray[np.uint8], expected: NDArray[np.uint8], report: VerifyReport) -> None:
        del report
        self._source.update(expected.data)
        self._distortion.add(found, expected, self._info.type)

    def finish(self, model: str, report: VerifyReport) -> None:
        name, stated, measured = self._entry["name"], self._entry["error"], self._distortion.error
        report.rounded.append({**self._entry, "error": measured})
        report.max_abs = max(report.max_abs or 0.0, measured["max_abs"])
        if self._source.hexdigest() != self._entry["sha256_source"]:
            report.bad.append(f"tensor {name} was made from another one than that of {model}")
        elif not all(math.isclose(measured[key], stated[key], rel_tol=1e-9) for key in _ERRORS):
            report.bad.append(f"tensor {name} differs from {model} by {measured}, not by {stated}")


def _decoded(dtype: str, words: NDArray[np.uint8]) -> NDArray[np.float32]:
    out = np.empty(DTYPES[dtype].count(len(words)), np.float32)
    decode(DTYPES[dtype], words, out)
    return out


def _compare_names(reel: Reel, against: Checkpoint, report: VerifyReport) -> None:
    for name in sorted(reel.tensors.keys() ^ against.stored.keys()):
        where = "the reel" if name in reel.tensors else against.name
        report.bad.append(f"tensor {name} is only in {where}")
    for name in sorted(reel.tensors.keys() & against.stored.keys()):
        entry, info = reel.tensors[name], against.stored[name]
        if (entry["dtype"], entry["shape"]) != (info.dtype, list(info.shape)):
            here, there = f"{entry['dtype']} {entry['shape']}", f"{info.dtype} {list(info.shape)}"
            report.bad.append(f"tensor {name} is {here} in the reel, {there} in {against.name}")


def _verify_samples(reel: Reel, against: Checkpoint | None, report: VerifyReport, tick: Tick) -> None:
    models = {sample["model_id"] for sample in reel.samples}
    wanted = None
    if against is not None:
        wanted = min(models) if len(models) == 1 else against.name
        if wanted not in models:
            report.bad.append(f"no frame shows {against.name}")
    for (model, rule), frames in groupby(reel.samples, lambda sample: (sample["model_id"], sample["rule"])):
        truth = _select(against, rule, report) if against is not None and model == wanted else None
        for sample in frames:
            _verify_frame(reel, sample, truth, report)
            tick(f"frame {sample['frame_index']}")
        if truth is not None and truth.left:
            report.bad.append(f"{truth.left:,} values of {model} are in no frame")


def _verify_frame(reel: Reel, sample: Sample, truth: _Values | None, report: VerifyReport) -> None:
    label = f"frame {sample['frame_index']}"
    expected = None if truth is None else truth.take(sample["fill"])
    report.checked += 1
    try:
        values = reel.sample_values(sample)
    except (VerificationError, HeaderError, UnsupportedVersion) as error:
        report.bad.append(f"{label}: {error.message}")
        return
    if expected is None:
        return
    if len(values) == len(expected):
        report.compare(values, expected)
    if values.tobytes() != expected.tobytes():
        report.bad.append(f"{label} ({sample['model_id']}) differs from the checkpoint")


class _Values:
    """The selected values of a checkpoint, in order, as they are asked for."""

    def __init__(self, selection: Selection, checkpoint: Checkpoint) -> None:
        self.left = selection.total
        self._blocks = (piece.values for piece in selection.read(checkpoint))
        self._rest = np.empty(0, np.float32)

    def take(self, count: int) -> NDArray[np.float32]:
        """Return the next ``count`` values, or as many as are left."""
        taken = np.empty(min(count, self.left), np.float32)
        self.left -= len(taken)
        filled = 0
        while filled < len(taken):
            if not len(self._rest):
                self._rest = next(self._blocks)
            part = self._rest[: len(taken) - filled]
            taken[filled : filled + len(part)] = part
            self._rest = self._rest[len(part) :]
            filled += len(part)
        return taken


def _select(checkpoint: Checkpoint, rule: dict[str, Any], report: VerifyReport) -> _Values | None:
    """Select anew what a reel says was selected; a checkpoint where that is impossible differs."""
    if rule.keys() - _Rule.__annotations__.keys() or find_fault(rule, _Rule):
        raise UnsupportedFormat(f"samples chosen by the rule {rule!r:.200}", hint="upgrade hilm")
    try:
        return _Values(Selection.of(checkpoint, **rule), checkpoint)
    except UsageError as error:
        report.bad.append(error.message)
        return None
