"""Look at a checkpoint: what is in it, and its values in one pass."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING, Any

from hilm.html import Document
from hilm.weights import MemoryEfficientParameterStreamer, StreamingConfig, open_checkpoint
from hilm.weights.statistics import LayerStatistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from os import PathLike

    from hilm.weights import StreamingProgress

    Progress = Callable[[int, int, str], None]


def no_progress(done: int, total: int, label: str) -> None:
    """Say nothing."""


def inspect(model: str | PathLike[str]) -> dict[str, Any]:
    """List what a checkpoint holds; no weights are read.

    Args:
        model: A folder, a weight file or an index file; a Hub id, ``hf://`` address or URL.

    Returns:
        ``model``, ``format``, ``parameters`` (weight values, each storage once), ``tensors`` (name, shape,
        dtype, role, bytes), ``roles`` (parameters of each), ``files`` (name, bytes), ``notes``.

    Raises:
        InputError: There is no checkpoint, or it is damaged.
    """
    with open_checkpoint(model) as checkpoint:
        tensors, roles = [], dict[str, int]()
        for info in checkpoint.tensors.values():
            tensors.append(
                {
                    "name": info.name,
                    "shape": list(info.shape),
                    "dtype": info.dtype,
                    "role": info.role.type,
                    "bytes": info.nbytes,
                }
            )
            if info.is_weight and info.alias_of is None:
                roles[info.role.type] = roles.get(info.role.type, 0) + info.numel
        return Document(
            {
                "model": checkpoint.name,
                "format": checkpoint.format,
                "parameters": checkpoint.total_parameters,
                "tensors": tensors,
                "roles": roles,
                "files": [{"name": file.name, "bytes": file.size} for file in checkpoint.files],
                "notes": list(checkpoint.notes),
            }
        )


def stream(
    model: str | PathLike[str],
    *,
    layers: Sequence[str] | None = None,
    exclude_layers: Sequence[str] | None = None,
    chunk_size: int = 1024,
    max_memory_mb: float = 1024.0,
    adaptive: bool = True,
    max_params: int | None = None,
    per_layer: bool = False,
    progress: Callable[[StreamingProgress], None] | None = None,
) -> dict[str, Any]:
    """Stream every selected value once and measure it.

    Args:
        model: A folder, a weight file or an index file; a Hub id, ``hf://`` address or URL.
        layers: Layer types to stream; all when None.
        exclude_layers: Layer types to leave out.
        chunk_size: Values per chunk; the figures by layer type do not depend on it.
        max_memory_mb: MiB above which chunks shrink.
        adaptive: Whether chunks adapt to memory at all.
        max_params: Stream a sample of so many values, spread over all selected tensors.
        per_layer: Also return the figures of every tensor.
        progress: Called after every block with where the stream is.

    Returns:
        The nine documented statistics, ``peak_memory_mb``, ``chunks``, ``notes``, and ``layers``: per layer
        type the parameters, mean, std, min, max, zeros, nonfinite values, outliers and histogram, as
        ``hilm.weights.statistics.Figures`` defines them. ``per_layer``, where it was asked for: the same per
        tensor, beside its name, role, kind and block.

    Raises:
        InputError: There is no checkpoint, or it is damaged.
        UsageError: A filter or size makes no sense.
    """
    config = StreamingConfig(
        chunk_size=chunk_size,
        max_memory_mb=max_memory_mb,
        adaptive_chunk_sizing=adaptive,
        target_layers=list(layers) if layers else None,
        exclude_layers=list(exclude_layers) if exclude_layers else None,
    )
    streamer, statistics = MemoryEfficientParameterStreamer(config), LayerStatistics()
    with closing(streamer.stream_blocks(model, max_total_params=max_params)) as blocks:
        for block, last in blocks:
            statistics.update(block.info.name, block.info.shape, block.values)
            if progress is not None:
                progress(last)
    return {
        **streamer.get_streaming_statistics(),
        "peak_memory_mb": last.peak_memory_mb,
        "chunks": last.chunks_processed,
        "notes": last.notes,
        "layers": statistics.by_role(),
        **({"per_layer": statistics.by_tensor()} if per_layer else {}),
    }
