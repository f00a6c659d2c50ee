from __future__ import annotations

import threading

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import LeaseError, PackedFormatUnsupported, TruncatedFile
from hilm.weights import blocks, open_checkpoint
from hilm.weights.blocks import MOST, RING, STALE, decode_ahead, read_blocks
from hilm.weights.roles import classify
from hilm.weights.tensor import BLOCK_VALUES, Span, TensorInfo
from tests.tiny import write_model


class Bytes:
    """Random bytes in memory, which end somewhere."""

    def __init__(self, size: int) -> None:
        self.data = np.random.default_rng(5).integers(0, 100, size, np.uint8)

    def read_into(self, start: int, out: np.ndarray) -> None:
        if start + len(out) > len(self.data):
            raise TruncatedFile("too early")
        out[:] = self.data[start : start + len(out)]


def tensors(dtype: str, sizes: list[int], source: Bytes):
    for number, size in enumerate(sizes):
        yield TensorInfo(f"t{number}", dtype, (size,), Span(0, number, 0), classify("t")), source


def model(tmp_path, count: int):
    return write_model(tmp_path, {"w": np.arange(count * BLOCK_VALUES, dtype=np.float32)})


def address(block) -> int:
    return block.values.__array_interface__["data"][0]


def test_the_suite_runs_poisoned(tmp_path):
    assert blocks.POISON
    with open_checkpoint(write_model(tmp_path, {"w": np.zeros(5, np.float32)})) as checkpoint:
        for block in checkpoint.blocks():
            assert (block._out.base[5:].view(np.uint32) == STALE).all()


def test_a_kept_array_keeps_its_buffer_and_the_ring_grows_up_to_a_limit(tmp_path):
    with open_checkpoint(model(tmp_path, 2 * MOST)) as checkpoint:
        kept, escapes = [], []
        for block in checkpoint.blocks():
            kept.append(block.values)
            escapes.append(block.escaped)
            assert len(block._ring._buffers) == max(len(kept), RING) if len(kept) < MOST else MOST
        np.testing.assert_array_equal(np.concatenate(kept), checkpoint.values("w"))
    assert not any(escapes[:MOST])
    assert escapes[MOST] == f"values 0 to {BLOCK_VALUES:,} of w"


def test_a_held_buffer_is_left_alone_until_it_is_released(tmp_path):
    """Looking behind the stream's back: an address is no reference."""
    with open_checkpoint(model(tmp_path, 3 * MOST)) as checkpoint:
        stream = checkpoint.blocks()
        block = next(stream)
        held, lease = address(block), block.hold()
        del block
        assert held not in {address(next(stream)) for _ in range(MOST)}
        lease.release()
        assert held in {address(next(stream)) for _ in range(MOST)}


def test_as_many_blocks_can_be_held_as_leave_one_buffer(tmp_path):
    with open_checkpoint(model(tmp_path, 2 * MOST)) as checkpoint:
        stream = checkpoint.blocks()
        leases = [next(stream).hold() for _ in range(MOST - 1)]
        last = next(stream)
        with pytest.raises(LeaseError, match=f"{MOST - 1} blocks are held"):
            last.hold()
        leases.pop().release()
        with last.hold(), last.hold():  # a buffer can be held twice, and counts once
            pass
        for lease in leases:
            lease.release()
        assert last._ring.held == 0


def test_a_lease_ends_once_and_with_its_stream(tmp_path):
    with open_checkpoint(model(tmp_path, 4)) as checkpoint:
        stream = checkpoint.blocks()
        lease, other = next(stream).hold(), next(stream).hold()
        lease.release()
        with pytest.raises(LeaseError, match="before"):
            lease.release()
        block = next(stream)
        stream.close()
        for late in (other.release, block.hold):
            with pytest.raises(LeaseError, match="closed"):
                late()
        late = [block.hold() for block in checkpoint.blocks()]
        for lease in late:  # a stream that came to its end was not closed
            lease.release()


def test_without_reference_counts_no_buffer_is_reused(tmp_path, monkeypatch):
    monkeypatch.setattr(blocks, "COUNTS_REFERENCES", False)
    with open_checkpoint(model(tmp_path, 6)) as checkpoint:
        owners = [block.values.base for block in checkpoint.blocks()]
        assert len({id(owner) for owner in owners}) == 6
        np.testing.assert_array_equal(np.concatenate(owners), checkpoint.values("w"))


@settings(max_examples=20)
@given(
    sizes=st.lists(st.integers(0, 3000).map(lambda n: 512 * n), min_size=1, max_size=6),
    dtype=st.sampled_from(["F32", "BF16", "F16", "F8_E4M3", "Q8_0"]),
    threads=st.integers(1, 4),
)
def test_decoding_ahead_gives_the_same_blocks_in_the_same_order(sizes, dtype, threads):
    source = Bytes(8 << 20)
    ahead = decode_ahead(read_blocks(tensors(dtype, sizes, source)), threads)
    for ours, theirs in zip(read_blocks(tensors(dtype, sizes, source)), ahead, strict=True):
        assert (ours.info, ours.start, ours.stop) == (theirs.info, theirs.start, theirs.stop)
        assert ours.values.tobytes() == theirs.values.tobytes()


def test_several_threads_decode(monkeypatch):
    names, together = set(), threading.Barrier(2, timeout=10)

    def decode(*_):
        names.add(threading.current_thread().name)
        together.wait()  # two blocks are decoded at a time, or this breaks

    monkeypatch.setattr(blocks, "decode", decode)
    stream = decode_ahead(read_blocks(tensors("F16", [4 * BLOCK_VALUES], Bytes(4 << 20))), 2)
    assert sum(block.values is not None for block in stream) == 4
    assert names == {"hilm-decode_0", "hilm-decode_1"}


def test_errors_ahead_surface_in_their_place():
    source = Bytes(2 * BLOCK_VALUES * 2)
    stream = decode_ahead(read_blocks(tensors("F16", [9 * BLOCK_VALUES], source)), 4)
    assert [next(stream).start for _ in range(2)] == [0, BLOCK_VALUES]
    with pytest.raises(TruncatedFile):
        next(stream)
    block = next(decode_ahead(read_blocks(tensors("F4", [512], source)), 2))
    with pytest.raises(PackedFormatUnsupported):
        _ = block.values


def test_closing_early_leaves_no_thread():
    stream = decode_ahead(read_blocks(tensors("F16", [9 * BLOCK_VALUES], Bytes(6 << 20))), 4)
    next(stream)
    stream.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("hilm-decode")]
