"""Samples of many models in one reel: a frame per model, or per chunk, with the exact values beside it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from hilm.errors import UsageError
from hilm.reel.curve import order_for
from hilm.reel.encoder import PREVIEW_FPS, EncodeReport, describe_front, new_manifest
from hilm.reel.layout import chunk_lengths
from hilm.reel.preview import draw_sample
from hilm.reel.records import Kind
from hilm.reel.sections import EMPTY_FRONT
from hilm.reel.slab import encode_slab
from hilm.reel.video import encode_preview
from hilm.reel.writer import ReelWriter
from hilm.weights.dtypes import DTYPES

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from numpy.typing import NDArray

    from hilm.reel.schema import Frame as FrameEntry
    from hilm.weights.streamer import ChunkMetadata

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
        UsageError: There is nothing to write, or a frame would hold more than 2^22 values.
        StorageError: The reel cannot be written; nothing appears under its name.
    """
    frames = [(sample, *frame) for sample in samples for frame in sample.frames()]
    largest = max((len(values) for _, values, _ in frames), default=0)
    if not 1 <= largest <= MAX_VALUES:
        raise UsageError(f"a frame of {largest:,} values; 1 to {MAX_VALUES:,} fit", hint="lower --max-params")
    side = 1 << max(order_for(largest), 1)
    drawn = [draw_sample(values, name=_title(sample, chunk), side=side) for sample, values, chunk in frames]
    video, front = EMPTY_FRONT, None
    if preview:
        shown: list[FrameEntry] = [
            {"tensor": sample.model_id, "scale": frame.scale, "sampled": True}
            for (sample, _, _), frame in zip(frames, drawn, strict=True)
        ]
        video = encode_preview((frame.pixels for frame in drawn), fps=PREVIEW_FPS)
        front = describe_front(video, shown)
    with ReelWriter(out, video) as writer:
        manifest = new_manifest("sample", {"max_params": largest}, front)
        manifest["samples"] = [
            {
                **_describe(number, *frame),
                "record": _add_values(writer, frame[1]),
                "grid_side": side,
                "scale": d.scale,
            }
            for number, (frame, d) in enumerate(zip(frames, drawn, strict=True))
        ]
        count = sum(len(values) for _, values, _ in frames)
        manifest["totals"] = {"weights": count, "bytes_source": 4 * count}
        facts = writer.finish(manifest)
    return EncodeReport(facts, "sample", count, len(frames) if preview else 0)


def _title(sample: ModelSample, chunk: ChunkMetadata | None) -> str:
    return sample.model_id if chunk is None else f"{sample.model_id} {chunk.layer_name}"


def _add_values(writer: ReelWriter, values: NDArray[np.float32]) -> int:
    """Write the exact values of one frame and return the record of their head."""
    coded = encode_slab(values.astype("<f4").view(np.uint8), DTYPES["F32"], 1, len(values))
    record = writer.add_record(Kind.HEAD, coded.head, 0)
    for data, elements in zip(coded.chunks, chunk_lengths(len(values)), strict=False):
        writer.add_record(Kind.SAMPLES, data, elements)
    return record


def _describe(
    number: int, sample: ModelSample, values: NDArray[np.float32], chunk: ChunkMetadata | None
) -> dict[str, Any]:
    entry = {
        "frame_index": number,
        "frame_timestamp": number / PREVIEW_FPS,
        "model_id": sample.model_id,
        "original_parameter_count": sample.parameters,
        "model_metadata": sample.metadata,
        "fill": len(values),
        "rule": sample.rule,
        "source_digest": sample.content_key.hex(),
        "deleted": False,
    }
    return entry if chunk is None else entry | {name: getattr(chunk, name) for name in _CHUNK_FIELDS}
