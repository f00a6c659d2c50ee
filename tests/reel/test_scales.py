from __future__ import annotations

from math import floor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hilm.errors import ChecksumMismatch
from hilm.reel.scales import (
    Scales,
    measure_scales,
    one_class,
    pack_vector,
    parse_vector,
    sent_scales,
    worth_sending,
)
from tests.reel import reference_decoder as reference

MANTISSA = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7, "F8_E4M3": 3, "F8_E5M2": 2}
BITS = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16, "F8_E4M3": 8, "F8_E5M2": 8}


def slow_scales(words, bits, mantissa):
    """The definition, in integers of Python."""
    rows, columns = words.shape
    shift = mantissa - 7
    magnitudes = [[word & (1 << bits - 1) - 1 for word in row] for row in words.tolist()]
    levels = [[m >> shift if shift >= 0 else m << -shift for m in row] for row in magnitudes]
    lowest = max(map(max, levels)) - 2048
    levels = [[max(level, lowest) for level in row] for row in levels]
    total, n = sum(map(sum, levels)), rows * columns

    def relative(count, line):
        value = floor((2 * (count * sum(line) - total) + 16 * n) / (32 * n))
        return min(max(value, -64), 63)

    r = [relative(rows, row) if columns >= 32 else 0 for row in levels]
    c = [relative(columns, column) if rows >= 32 else 0 for column in zip(*levels, strict=True)]
    n_class = 8 if n >= 65_536 else 4 if n >= 8192 else 1
    sums = sorted(a + b for a in r for b in c)
    thresholds = [1 + sums[-(-k * n // n_class) - 1] for k in range(1, n_class)]
    return r, c, thresholds


def slow_ids(scales, columns, start, stop):
    head = {"r": scales.rows.tolist(), "c": scales.columns.tolist(), "thresholds": scales.thresholds.tolist()}
    return reference.class_ids(head, columns, start, stop)


@pytest.mark.parametrize("dtype", MANTISSA)
@pytest.mark.parametrize("shape", [(96, 96), (31, 300), (300, 31), (1, 9000), (9000, 1), (256, 257)])
def test_scales_are_those_of_the_definition(dtype, shape):
    rng = np.random.default_rng(7)
    words = rng.integers(0, 1 << BITS[dtype], shape, np.uint64).astype(f"<u{BITS[dtype] // 8}")
    words[::3] >>= 3
    scales = measure_scales(words, MANTISSA[dtype])
    r, c, thresholds = slow_scales(words, BITS[dtype], MANTISSA[dtype])
    assert scales.rows.tolist() == r
    assert scales.columns.tolist() == c
    assert scales.thresholds.tolist() == thresholds
    assert scales.ids(37, 4100).tolist() == slow_ids(scales, shape[1], 37, 4100)


def test_classes_follow_row_and_column_scale_and_are_equally_full():
    rng = np.random.default_rng(0)
    spread = np.exp2(rng.uniform(-2, 2, (300, 1))) * np.exp2(rng.uniform(-1, 1, (1, 400)))
    values = (rng.standard_normal((300, 400)) * spread).astype(np.float32)
    scales = measure_scales(values.view(np.uint32), 23)
    assert np.corrcoef(scales.rows, np.log2(spread[:, 0]))[0, 1] > 0.99
    share = np.bincount(scales.ids(0, values.size), minlength=8) / values.size
    assert scales.occupied().all()
    assert np.abs(share - 1 / 8).max() < 0.03


def test_outliers_saturate_and_zeros_do_not_drag_a_row_below_sixteen_octaves():
    values = np.full((100, 100), 1.0, np.float32)
    values[0], values[1, :] = 1e30, 0.0
    scales = measure_scales(values.view(np.uint32), 23)
    assert scales.rows[0] == 63
    assert scales.rows[1] == scales.rows[2]


def test_small_slabs_have_one_class_and_no_scales():
    scales = measure_scales(np.arange(8191, dtype=np.uint32).reshape(1, -1), 23)
    assert scales.n_class == 1
    assert not scales.ids(5, 1000).any()
    assert scales.occupied().tolist() == [True]


def test_what_is_sent_depends_on_the_shape():
    assert sent_scales(32, 32, 4) == (True, True)
    assert sent_scales(31, 32, 4) == (True, False)
    assert sent_scales(32, 31, 4) == (False, True)
    assert sent_scales(32, 32, 1) == (False, False)


def test_identical_rows_fill_one_class_only():
    scales = measure_scales(np.full((300, 300), 0x3F80_0000, np.uint32), 23)
    assert scales.thresholds.tolist() == [1] * 7
    assert scales.occupied().tolist() == [True] + [False] * 7
    assert not scales.ids(0, 90_000).any()


@given(st.data(), st.integers(1, 40), st.integers(1, 40), st.integers(0, 15))
@settings(deadline=None)
def test_ids_and_occupation_of_any_thresholds(data, rows, columns, count):
    scale = st.integers(-64, 63)
    scales = Scales(
        np.array(data.draw(st.lists(scale, min_size=rows, max_size=rows)), np.int8),
        np.array(data.draw(st.lists(scale, min_size=columns, max_size=columns)), np.int8),
        np.array(
            sorted(data.draw(st.lists(st.integers(-32768, 32767), min_size=count, max_size=count))), np.int16
        ),
    )
    ids = slow_ids(scales, columns, 0, rows * columns)
    start = data.draw(st.integers(0, rows * columns))
    stop = data.draw(st.integers(start, rows * columns))
    assert scales.ids(start, stop).tolist() == ids[start:stop]
    if count:
        assert scales.occupied().tolist() == [k in ids for k in range(count + 1)]


@given(st.lists(st.integers(-64, 63), min_size=1))
@settings(deadline=None)
def test_vectors_come_back_and_agree_with_the_reference(values):
    data = b"before" + pack_vector(np.array(values, np.int8)) + b"behind"
    read, stop = parse_vector(data, 6, len(values))
    assert read.tolist() == values
    assert data[stop:] == b"behind"
    assert reference.read_vector(data, 6, len(values)) == (values, stop)


def test_cut_and_lying_vectors_are_refused():
    data = pack_vector(np.arange(-64, 64).astype(np.int8))
    for size in range(len(data)):
        with pytest.raises(ChecksumMismatch):
            parse_vector(data[:size], 0, 128)
    for damaged in (
        b"\0\0" + data[2:],
        b"\xff\xff" + data[2:],
        data[:2] + b"\0\0" + data[4:],
        data[:4] + b"\xff\xff\xff\x7f" + data[8:],
    ):
        with pytest.raises(ChecksumMismatch):
            parse_vector(damaged, 0, 128)
    for size in (127, 129):
        with pytest.raises(ChecksumMismatch):
            parse_vector(data, 0, size)


def test_a_vector_with_values_that_are_no_scales_is_refused():
    data = pack_vector(np.array([64 - 128, 5], np.int8))
    assert parse_vector(data, 0, 2)[0].tolist() == [-64, 5]
    with pytest.raises(ChecksumMismatch, match="outside"):
        parse_vector(pack_vector(np.array([64, 5])), 0, 2)


def test_one_class_is_the_same_for_every_shape():
    assert one_class().n_class == 1


def test_golden_vector():
    assert pack_vector(np.array([0, -1, 3, 63, -64, 0, 0, 17, 2, 0], np.int8)).hex() == GOLDEN


GOLDEN = (
    "31002c0026000000839164002e400e00172003dc104208218410420821841042082104800c7043082184104208012003dc009001"
    "c3021900caa61800fc090a002e0d0a00c70e0a00da750200da750200950b0a00000000008700"
)


@pytest.mark.parametrize(("spread", "classes"), [(0.0, 1), (0.6, 4), (3.0, 8)])
def test_as_many_classes_as_pay_for_their_tables(spread, classes):
    rng = np.random.default_rng(3)
    levels = rng.permutation(np.linspace(-spread, spread, 256))[:, None]
    values = (rng.standard_normal((256, 256)) * np.exp2(levels)).astype("<f4")
    scales = measure_scales(values.view("<u4"), 23)
    symbols = values.view("<u4").reshape(-1) >> 23 & 255
    counts = np.bincount(
        scales.ids(0, values.size) * np.int64(256) + symbols.astype(np.int64), minlength=2048
    )
    kept = worth_sending(scales, counts.reshape(8, 256), tables=1)
    assert kept.n_class == classes
    assert set(kept.thresholds.tolist()) <= set(scales.thresholds.tolist())
