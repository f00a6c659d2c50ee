"""Samples of many models in one reel: a frame per model, or per chunk, with the exact values beside it."""

from __future__ import annotations

from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np

from hilm.errors import UsageError
from hilm.reel.curve import order_for
from hilm.reel.encoder import EncodeReport, new_manifest
from hilm.reel.front import FPS, describe_front
from hilm.reel.layout import chunk_lengths
from hilm.reel.preview import draw_sample
from hilm.reel.records import Kind
from hilm.reel.schema import Frame as FrameEntry
from hilm.reel.sections import EMPTY_FRONT
from hilm.reel.slab import encode_slab
from hilm.reel.video import encode_preview
from hilm.reel.writer import ReelWriter
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hilm.reel.schema import Sample
    from hilm.reel.slab import EncodedSlab
    from hilm.weights.streamer import ChunkMetadata

    _Frame: TypeAlias = "tuple[ModelSample, NDArray[np.float32], ChunkMetadata | None]"

MAX_VALUES = 1 << 22
"""Values one frame can hold: a picture of side 2048."""

_CHUNK_FIELDS = (
    "chunk_id", "layer_name", "layer_type", "parameter_count", "chunk_size", "start_index", "end_index",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class ModelSample:
    """Sampled values of one model.

    Attributes:
        model_id: Name of the model.
        parameters: Its exact parameter count.
        values: float32, in the order of the checkpoint.
        content_key: 32 bytes naming the bytes they come from.
        rule: How they were chosen, as JSON.
        metadata: Facts about the model, as JSON.
        chunks: Where ``values`` is one frame per chunk: what each chunk is, in order; else empty.
    """

    model_id: str
    parameters: int
    values: NDArray[np.float32]
    content_key: bytes
    rule: dict[str, Any]
    metadata: dict[str, Any] = field(default_factory=dict)
    chunks: tuple[ChunkMetadata, ...] = ()

    def frames(self) -> Iterator[tuple[NDArray[np.float32], ChunkMetadata | None]]:
        """Values of each frame, with its chunk if there is one per chunk."""
        if not self.chunks:
            yield self.values, None
            return
        start = 0
        for chunk in self.chunks:
            yield self.values[start : start + chunk.parameter_count], chunk
            start += chunk.parameter_count


def encode_samples(samples: Sequence[ModelSample], out: Path, *, preview: bool = True) -> EncodeReport:
    """Write samples of any number of models as one reel; all frames have one size.

    Raises:
        UsageError: There is nothing to write, or a frame would hold no values or more than 2^22.
        StorageError: The reel cannot be written; nothing appears under its name.
    """
    frames = [(sample, *frame) for sample in samples for frame in sample.frames()]
    sizes = [len(values) for _, values, _ in frames] or [0]
    if min(sizes) < 1 or max(sizes) > MAX_VALUES:
        found = f"frames of {min(sizes):,} to {max(sizes):,} values"
        raise UsageError(f"{found}; 1 to {MAX_VALUES:,} fit", hint="lower --max-params")
    side, shown = 1 << max(order_for(max(sizes)), 1), list[FrameEntry]()
    pictures, video, front = _draw(frames, side, shown), EMPTY_FRONT, None
    with ThreadPoolExecutor(1) as pool:
        coded = pool.map(_encode_values, [values for _, values, _ in frames])  # while pictures are encoded
        if preview:
            video = encode_preview(pictures, fps=FPS)
            front = describe_front(video, shown)
        deque(pictures, maxlen=0)  # without a preview the scales are wanted all the same
    with ReelWriter(out, video) as writer:
        manifest = new_manifest("sample", {"grid_side": side}, front)
        manifest["samples"] = [
            _describe(number, *frame, side, picture["scale"], _add_values(writer, slab, len(frame[1])))
            for number, (frame, picture, slab) in enumerate(zip(frames, shown, coded, strict=True))
        ]
        manifest["totals"] = {"weights": sum(sizes), "bytes_source": 4 * sum(sizes)}
        facts = writer.finish(manifest)
    return EncodeReport(facts, "sample", sum(sizes), len(frames) if preview else 0)


def _draw(frames: list[_Frame], side: int, shown: list[FrameEntry]) -> Iterator[NDArray[np.uint8]]:
    """Pixels of every frame; what the manifest needs to know of it is added to ``shown``."""
    for sample, values, chunk in frames:
        name = sample.model_id if chunk is None else f"{sample.model_id} {chunk.layer_name}"
        frame = draw_sample(values, name=name, side=side)
        shown.append({"tensor": sample.model_id, "scale": frame.scale, "sampled": True})
        yield frame.pixels


def _encode_values(values: NDArray[np.float32]) -> EncodedSlab:
    return encode_slab(values.astype("<f4").view(np.uint8), DTYPES["F32"], 1, len(values))


def _add_values(writer: ReelWriter, coded: EncodedSlab, count: int) -> int:
    """Write the exact values of one frame and return the record of their head."""
    record = writer.add_record(Kind.HEAD, coded.head, 0)
    for data, elements in zip(coded.chunks, chunk_lengths(count), strict=False):
        writer.add_record(Kind.SAMPLES, data, elements)
    return record


def _describe(
    number: int,
    sample: ModelSample,
    values: NDArray[np.float32],
    chunk: ChunkMetadata | None,
    side: int,
    scale: float,
    record: int,
) -> Sample:
    entry: Sample = {
        "frame_index": number,
        "frame_timestamp": number / FPS,
        "model_id": sample.model_id,
        "original_parameter_count": sample.parameters,
        "model_metadata": sample.metadata,
        "grid_side": side,
        "fill": len(values),
        "scale": scale,
        "rule": sample.rule,
        "record": record,
        "source_digest": sample.content_key.hex(),
        "deleted": False,
    }
    if chunk is not None:
        entry |= cast("Sample", {name: getattr(chunk, name) for name in _CHUNK_FIELDS})
    return entry
