"""Encoding while streaming: chunks go to a sink in a thread of its own, and none is ever dropped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar

from hilm.errors import EncoderError, UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from hilm.weights.checkpoint import Checkpoint
    from hilm.weights.streamer import ChunkMetadata

    Chunks = Sequence[tuple[NDArray[np.float32], ChunkMetadata]]


class Sink(ABC):
    """What a stream is encoded into; ``encode`` is called in one thread, for one chunk after the other.

    Attributes:
        requires_fixed_chunks: Whether the result depends on the chunk size, which then does not adapt.
    """

    requires_fixed_chunks: ClassVar[bool] = False

    def begin(self, checkpoint: Checkpoint) -> None:  # noqa: B027 - a sink may have nothing to prepare
        """Prepare for the chunks of a checkpoint."""

    @abstractmethod
    def encode(self, values: NDArray[np.float32], metadata: ChunkMetadata) -> None:
        """Take one chunk; the read-only values are right for as long as they are referred to."""

    @abstractmethod
    def finish(self) -> object:
        """Return the result, after the last chunk."""

    def abort(self, error: BaseException) -> None:  # noqa: B027 - a sink may have nothing to undo
        """Clean up: the stream, or this sink, failed or was closed."""


class RealTimeEncoder:
    """Feeds a sink while the stream goes on; a slow sink slows the stream down, nothing is dropped.

    Args:
        sink: Where the chunks go.
        queue_blocks: Blocks of chunks that may wait for the sink.

    Attributes:
        result: What ``sink.finish`` returned, once the stream has ended.
        chunks_encoded: Chunks that the sink has accepted.

    Raises:
        UsageError: ``queue_blocks`` is below 1.
    """

    def __init__(self, sink: Sink, queue_blocks: int = 4) -> None:
        if queue_blocks < 1:
            raise UsageError(f"queue_blocks is {queue_blocks}; at least one block has to wait somewhere")
        self.sink, self.chunks_encoded = sink, 0
        self.result: object = None
        self._room, self._queue = queue_blocks, deque[Future[None]]()
        self._failing: ChunkMetadata | None = None
        self._pool: ThreadPoolExecutor

    @contextmanager
    def encoding(self, checkpoint: Checkpoint) -> Iterator[None]:
        """Begin, and in the end finish, or abort if there was an error.

        Raises:
            EncoderError: The sink failed.
        """
        self.result, self.chunks_encoded, self._failing = None, 0, None
        self.sink.begin(checkpoint)
        with ThreadPoolExecutor(1, "hilm-encoder") as self._pool:
            try:
                yield
                while self._queue:
                    self._settle()
                self.result = self.sink.finish()
            except BaseException as error:
                self._pool.shutdown(cancel_futures=True)
                self._queue.clear()
                self.sink.abort(error)
                raise

    def put(self, chunks: Chunks) -> None:
        """Queue chunks, waiting for room.

        Raises:
            EncoderError: The sink failed at an earlier chunk.
        """
        while self._queue and (len(self._queue) >= self._room or self._queue[0].done()):
            self._settle()
        self._queue.append(self._pool.submit(self._encode, chunks))

    def _settle(self) -> None:
        error, chunk = self._queue.popleft().exception(), self._failing
        if error is not None and chunk is not None:
            where = f"chunk {chunk.chunk_id} of {chunk.layer_name}"
            raise EncoderError(f"the encoder failed at {where}: {type(error).__name__}: {error}") from error

    def _encode(self, chunks: Chunks) -> None:
        if self._failing is not None:
            return
        for values, metadata in chunks:
            self._failing = metadata  # unless the call returns
            self.sink.encode(values, metadata)
            self._failing = None
            self.chunks_encoded += 1
