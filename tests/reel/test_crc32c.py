from __future__ import annotations

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.reel.crc32c import crc32c


def bitwise(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0),
        (b"123456789", 0xE3069283),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
    ],
)
def test_published_values(data, expected):
    assert crc32c(data) == expected


@given(st.binary(max_size=200))
def test_equals_the_bitwise_definition(data):
    assert crc32c(data) == bitwise(data)


@given(st.binary(max_size=100), st.binary(max_size=100))
def test_continues(one, other):
    assert crc32c(other, crc32c(one)) == crc32c(one + other)


@given(st.binary(min_size=1, max_size=64), st.data())
@settings(max_examples=50)
def test_every_flipped_bit_changes_it(data, draw):
    bit = draw.draw(st.integers(0, 8 * len(data) - 1))
    damaged = bytearray(data)
    damaged[bit // 8] ^= 1 << bit % 8
    assert crc32c(damaged) != crc32c(data)


def test_takes_unaligned_and_writable_views_and_leaves_them_writable():
    data = bytearray(range(256)) * 3
    view = memoryview(data)[3:700]
    assert crc32c(view) == crc32c(bytes(view))
    view[0] = 9
    assert crc32c(view) == bitwise(bytes(view))


def test_is_fast_enough_not_to_matter():
    data = bytes(32 << 20)
    crc32c(data)
    seconds = []
    for _ in range(3):
        start = time.process_time()
        crc32c(data)
        seconds.append(time.process_time() - start)
    assert len(data) / min(seconds) > 0.75e9  # half of what an idle core does at least
