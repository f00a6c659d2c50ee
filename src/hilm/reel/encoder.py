"""Encode: a checkpoint into a reel, bit for bit or with rounded weights."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import UnsupportedFormat
from hilm.reel.carrier import CARRIERS, Placement, carrier_settings, is_carried
from hilm.reel.distortion import Distortion, mean_error
from hilm.reel.front import draw_front
from hilm.reel.head import Coder
from hilm.reel.journal import find_front
from hilm.reel.layout import SLAB_ELEMENTS, chunk_lengths, coded_view, cut_slabs
from hilm.reel.manifest import (
    CODING,
    DELTA_CODERS,
    EXACT_CODERS,
    ROUNDING_CODERS,
    canonical_json,
    tensor_digest,
)
from hilm.reel.price import choose_layout
from hilm.reel.quantizer import LAMBDA
from hilm.reel.rate import find_quantizer
from hilm.reel.records import Kind
from hilm.reel.sections import EMPTY_FRONT
from hilm.reel.slab import EncodedSlab, carry_slab, encode_slab, recall_slab
from hilm.reel.source_files import store_side_files, store_weight_files
from hilm.reel.words import word_view
from hilm.reel.writer import ReelFacts, ReelWriter, part_of
from hilm.weights.content import ContentDigest, content_key
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hilm.reel.delta_encoder import Differences
    from hilm.reel.layout import Slab
    from hilm.reel.plan import Planner
    from hilm.reel.rate import Rounding
    from hilm.reel.schema import Front, Manifest, Tensor
    from hilm.weights.blocks import Block
    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.dtypes import DType
    from hilm.weights.tensor import TensorInfo

    Choice = Callable[[TensorInfo], Planner | None]

_CODERS = (*ROUNDING_CODERS, *DELTA_CODERS, *EXACT_CODERS)


@dataclass(frozen=True, slots=True)
class EncodeReport:
    """What was written.

    Attributes:
        reel: The file: path, size, SHA-256, manifest SHA-256, payload bytes and bits per weight.
        mode: ``archive``, ``small``, ``delta`` or ``sample``.
        weights: Values coded.
        frames: Frames of the front video.
        file_digests: SHA-256 of every weight file of the source, in the order of the checkpoint's files.
        nmse: Mean normalised squared error of the rounded tensors; 0 if there are none.
        unpaired: Tensors of a delta that the base does not have.
        energy_lost: Share of the energy of the differences that rounding them lost.
        resumed: Slabs that an interrupted run had written already.
        layouts: Layout of every tensor that a video carries, and the percentage it saved.
    """

    reel: ReelFacts
    mode: str
    weights: int
    frames: int
    file_digests: tuple[bytes, ...] = ()
    nmse: float = 0.0
    unpaired: tuple[str, ...] = ()
    energy_lost: float = 0.0
    resumed: int = 0
    layouts: dict[str, tuple[str, float]] = field(default_factory=dict)


def encode_archive(
    checkpoint: Checkpoint,
    out: Path,
    *,
    preview: bool = True,
    sinks: Sequence[Callable[[Block], None]] = (),
    threads: int | None = None,
    carrier: str = "packed",
    layout: str = "auto",
) -> EncodeReport:
    """Write a reel from which every byte of the checkpoint's files comes back.

    Args:
        checkpoint: An open checkpoint.
        out: Name of the reel.
        preview: Draw the front video, one frame per tensor.
        sinks: Called with every block of the same pass: a fingerprint, a progress bar.
        threads: Chunks coded at a time; all cores by default. The bytes do not depend on it.
        carrier: What the symbols ride in: ``packed``, or a key of `hilm.reel.carrier.CARRIERS`, a lossless
            video beside the reel or, for ``vp9``, in front of it; an interrupted one begins anew.
        layout: Where elements lie in its frames: ``raster``, ``flat``, ``hilbert``, or for each tensor
            what measures least.

    Raises:
        StorageError: The reel cannot be written; nothing appears under its name.
        SourceChanged: A file changed while it was read.
    """
    ride = carrier_settings(carrier, layout)
    return write_reel(checkpoint, out, "archive", ride, lambda _: None, preview, sinks, threads)


def encode_small(
    checkpoint: Checkpoint,
    out: Path,
    rounding: Rounding,
    *,
    preview: bool = True,
    sinks: Sequence[Callable[[Block], None]] = (),
    threads: int | None = None,
    carrier: str = "packed",
    layout: str = "auto",
) -> EncodeReport:
    """Write a reel of rounded weights; the error is measured on what a reader will decode.

    Matrices of at least 32 rows and columns are rounded; everything else, packed weights included, is kept
    bit for bit.

    Args:
        checkpoint: An open checkpoint.
        out: Name of the reel.
        rounding: How many bits or how much error, and what is kept.
        preview: As of `encode_archive`.
        sinks: As of `encode_archive`.
        threads: As of `encode_archive`.
        carrier: As of `encode_archive`.
        layout: As of `encode_archive`.

    Raises:
        EmptySelection: There is nothing to round.
        UnsupportedFormat: The files are PyTorch's.
        StorageError: The reel cannot be written; nothing appears under its name.
        SourceChanged: A file changed while it was read.
    """
    if checkpoint.format == "torch":
        raise UnsupportedFormat(
            f"{checkpoint.name}: PyTorch files keep checksums of their values, which rounding would break",
            hint="save the model as safetensors, or use --mode archive",
        )
    ride = carrier_settings(carrier, layout)
    quantizer = find_quantizer(checkpoint, rounding, threads or os.cpu_count() or 1)
    settings = ride | {
        "st": quantizer.step,
        "lambda": LAMBDA,
        "quantiser": rounding.quantiser,
        "effort": rounding.effort,
        "keep": list(rounding.keep),
    }

    def choose(info: TensorInfo) -> Planner | None:
        whole = checkpoint.tensors.get(info.name)  # a part of packed weights is none
        return quantizer if whole is not None and rounding.applies(whole) else None

    return write_reel(checkpoint, out, "small", settings, choose, preview, sinks, threads)


def write_reel(
    checkpoint: Checkpoint,
    out: Path,
    mode: str,
    settings: dict[str, Any],
    choose: Choice,
    preview: bool,  # noqa: FBT001 - of the public functions
    sinks: Sequence[Callable[[Block], None]],
    threads: int | None,
    differences: Differences | None = None,
) -> EncodeReport:
    """Write every tensor as its planner says, for the functions of the modes.

    Args:
        checkpoint: As of `encode_archive`.
        out: As of `encode_archive`.
        mode: What the manifest calls it.
        settings: Options that the bytes depend on; a step among them says that weights are rounded.
        choose: Makes the planner of a tensor; None keeps it bit for bit.
        preview: As of `encode_archive`.
        sinks: As of `encode_archive`.
        threads: As of `encode_archive`.
        differences: From the base of a delta.
    """
    settings = {"tile": 512, "slab_elements": SLAB_ELEMENTS} | settings
    carrier = CARRIERS.get(settings.get("carrier", "packed"))
    base, origin = (differences.base, differences.state) if differences else (None, None)
    key = "" if carrier else _key(checkpoint, mode, settings, preview, origin)  # a video begins anew
    drawn = find_front(part_of(out), key) if key else None
    if drawn is None:
        shows = preview and checkpoint.tensors and (carrier is None or carrier.suffix)
        drawn = draw_front(checkpoint, base) if shows else (EMPTY_FRONT, None)
    video, front = drawn
    with ReelWriter(out, video, key=key, described=front, carrier=carrier) as writer:
        content = ContentDigest(checkpoint)
        decoded = ContentDigest(checkpoint) if "st" in settings else None
        cores, wanted = threads or os.cpu_count() or 1, settings.get("layout", "")
        slabs = _SlabSink(writer, choose, decoded, cores, wanted, differences)
        for block in checkpoint.blocks(stored=True):
            for sink in (slabs.update, content.update, *sinks):
                sink(block)
        film = writer.finish_film(writer.film) if writer.film else (None, None)
        digests, tensors = content.finish(), slabs.finish(checkpoint)
        files = store_weight_files(checkpoint, digests, decoded.digests() if decoded else digests, writer)
        files += store_side_files(checkpoint, writer)
        checkpoint.check_unchanged()
        manifest = new_manifest(mode, settings, front or film[0])
        manifest["carrier"], manifest["companion"] = settings.get("carrier", "packed"), film[1]
        manifest["source"] = {
            "digest": tensor_digest(
                (t["name"], t["dtype"], t["shape"], t.get("sha256_source", t["sha256"])) for t in tensors
            ),
            "content_key": content_key(digests).hex(),
            "files": files,
            "metadata": checkpoint.metadata,
        }
        manifest["tensors"], manifest["base"] = tensors, differences.pin(tensors) if differences else None
        weights = sum(t.numel for t in checkpoint.tensors.values() if t.alias_of is None)
        manifest["totals"] = {"weights": weights, "bytes_source": sum(file["size"] for file in files)}
        if (nmse := mean_error(tensors)) is not None:
            manifest["totals"]["nmse"] = nmse
        facts = writer.finish(manifest)
        resumed = writer.resumed
        film_frames = int((writer.index["kind"] == Kind.PACKET).sum()) if film[0] else 0
    frames = len(front["frames"]) if front else film_frames
    layouts = {t["name"]: (t["layout"], t["layout_gain"]) for t in tensors if "layout_gain" in t}
    return EncodeReport(facts, mode, weights, frames, digests, nmse or 0.0, resumed=resumed, layouts=layouts)


def _key(checkpoint: Checkpoint, *settings: object) -> str:
    """Hash of everything the bytes of a reel depend on."""
    return hashlib.sha256(canonical_json([checkpoint.state.hex(), _writers(), *settings])).hexdigest()


def _writers() -> dict[str, str]:
    return {name: version(name) for name in ("hilm", "numpy", "numba", "av")}


def new_manifest(mode: str, settings: dict[str, Any], front: Front | None) -> Manifest:
    """Manifest of a first generation without tensors, samples or totals."""
    return {
        "format": "hilm-reel",
        "version": [1, 0],
        "mode": mode,
        "carrier": "packed",
        "generation": 1,
        "writer": _writers(),
        "settings": settings,
        "coding": CODING,
        "source": None,
        "base": None,
        "companion": None,
        "front": front,
        "tensors": [],
        "totals": {"weights": 0, "bytes_source": 0},
    }


class _SlabSink:
    """Collects stored words into slabs and writes each as soon as it is full.

    Args:
        writer: Takes the records.
        choose: Says how a tensor is coded if not bit for bit.
        decoded: Is given the bytes that will be decoded; None where they are those of the files.
        threads: Chunks coded at a time.
        layout: Where elements lie in the frames of a video that carries them.
        differences: From the base of a delta, which is read in step.
    """

    def __init__(
        self,
        writer: ReelWriter,
        choose: Choice,
        decoded: ContentDigest | None,
        threads: int,
        layout: str,
        differences: Differences | None,
    ) -> None:
        self._writer, self._choose, self._decoded, self._threads = writer, choose, decoded, threads
        self._wanted, self._differences = layout, differences
        self._buffer = np.empty(0, np.uint8)
        self._done: dict[str, Tensor] = {}

    def update(self, block: Block) -> None:
        """Take the next block of the checkpoint."""
        if block.first:
            self._begin(block.info)
        words = block.words
        if self._decoded is not None:
            self._source.update(words.data)
        while len(words):
            size = self._pending[0].elements * self._word
            taken = min(size - self._fill, len(words))
            self._buffer[self._fill : self._fill + taken] = words[:taken]
            self._fill += taken
            words = words[taken:]
            if self._fill == size:
                self._flush(block.info, self._pending.pop(0))
        if block.last:
            self._end(block.info)

    def finish(self, checkpoint: Checkpoint) -> list[Tensor]:
        """Entries of the manifest, in checkpoint order; an alias repeats its owner's facts."""
        entries, index = [], self._writer.index
        for entry in self._done.values():
            runs = (index[first : first + count] for _, _, first, count in entry["slabs"])
            entry["bits"] = 8 * sum(int(run["size"].sum()) + run.nbytes for run in runs)
        for name, info in checkpoint.stored.items():
            owner = self._done[info.alias_of or name]
            if info.alias_of is not None:
                owner = {**owner, "name": name, "alias_of": info.alias_of, "slabs": [], "bits": 0}
            entries.append(owner)
        return entries

    def _begin(self, info: TensorInfo) -> None:
        rows, columns, self._word = coded_view(info.dtype, info.shape)
        self._pending, by_element = cut_slabs(rows, columns, self._word)
        largest = max((slab.elements for slab in self._pending), default=0) * self._word
        if len(self._buffer) < largest:
            self._buffer = np.empty(largest, np.uint8)
        self._planner, self._distortion = self._choose(info), Distortion()
        self._sha256, self._source, self._fill, self._offset = hashlib.sha256(), hashlib.sha256(), 0, 0
        self._entry: Tensor = {
            "name": info.name,
            "dtype": info.dtype,
            "shape": list(info.shape),
            "nbytes": info.nbytes,
            "coder": "raw",
            "slabs": [],
            "layout": "flat",
            "sha256": "",
            "bits": 0,
        }
        if by_element:
            self._entry["unit"] = "element"

    def _flush(self, info: TensorInfo, slab: Slab) -> None:
        words, entry, dtype = self._buffer[: self._fill], self._entry, DTYPES[info.dtype]
        first, written = self._writer.count, self._writer.replay()
        base = self._differences.advance(self._fill) if self._differences else None
        if written is not None:
            coded = recall_slab(written, dtype, slab.rows, slab.columns, base=base, threads=self._threads)
        else:
            coded = self._carry(words, dtype, slab) or encode_slab(
                words, dtype, slab.rows, slab.columns, planner=self._planner, threads=self._threads
            )
            self._write(coded, slab)
            self._writer.end_slab(first)
        records = 1 + len(coded.chunks) + len(coded.frames)
        entry["slabs"].append([slab.begin, slab.end, first, records])
        entry["coder"] = min(
            entry["coder"], Coder(coded.head[0]).name.lower().replace("_", "-"), key=_CODERS.index
        )
        back = words if coded.decoded is None else coded.decoded
        if self._differences and coded.decoded is not None:
            self._differences.measure(words, back, word_view(dtype, slab.rows, slab.columns))
        self._sha256.update(back.data)
        if self._decoded is not None:
            if self._planner is not None and dtype.word.itemsize > 1:  # single bytes are never rounded
                self._distortion.add(back, words, dtype)
            self._decoded.add(info, self._offset, back)
        self._offset += self._fill
        self._fill = 0

    def _write(self, coded: EncodedSlab, slab: Slab) -> None:
        self._writer.add_record(Kind.HEAD, coded.head, 0)
        place, film = Placement(slab.rows, slab.columns, self._entry["layout"]), self._writer.film
        lengths = place.lengths if coded.frames else chunk_lengths(slab.elements)
        for chunk, frame, elements in zip_longest(coded.chunks, coded.frames, lengths[: len(coded.chunks)]):
            if frame is not None and film is not None:
                self._writer.add_frame(film, frame, elements)
            self._writer.add_record(Kind.DATA, chunk, elements)

    def _carry(self, words: NDArray[np.uint8], dtype: DType, slab: Slab) -> EncodedSlab | None:
        """Code a slab for the video; the first of a tensor decides the layout of all. None: pack it."""
        film, entry = self._writer.film, self._entry
        if film is None or not is_carried(slab.elements):
            return None
        layout, gain, begun = entry["layout"], 0.0, "layout_gain" in entry
        if not begun:
            options = film.carrier, self._planner, self._wanted, self._threads
            layout, gain = choose_layout(words, dtype, slab.rows, slab.columns, *options)
        place = Placement(slab.rows, slab.columns, layout)
        coded = carry_slab(words, dtype, place, planner=self._planner, threads=self._threads)
        if coded is not None and not begun:
            film.begin(entry["name"])
            entry["layout"], entry["layout_gain"] = layout, gain
        return coded

    def _end(self, info: TensorInfo) -> None:
        entry, source = self._entry, self._source.hexdigest()
        entry["sha256"] = self._sha256.hexdigest()
        if self._decoded is not None and source != entry["sha256"]:
            entry |= {"sha256_source": source, "error": self._distortion.error}
        self._done[info.name] = entry
