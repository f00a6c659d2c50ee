from __future__ import annotations

import struct

import numpy as np
import pytest

from hilm.errors import ChecksumMismatch, UnsupportedVersion
from hilm.reel.head import Coder, SlabHead, pack_head, parse_head
from hilm.reel.scales import Scales
from hilm.reel.tables import table_codes
from hilm.reel.words import word_view
from hilm.weights.dtypes import DTYPES

VIEW = word_view(DTYPES["BF16"], 100, 120)


def symbols_head(thresholds=(-3, 0, 2)):
    rng = np.random.default_rng(4)
    rows, columns = (rng.integers(-5, 6, size).astype(np.int8) for size in (100, 120))
    codes = table_codes(rng.integers(0, 50, (4, 60)) + 1)
    values = np.arange(300, 420, 2).astype(np.uint16)
    scales = Scales(rows, columns, np.array(thresholds, np.int16))
    return SlabHead(Coder.SYMBOLS, VIEW, scales=scales, bits=10, values=values, codes=codes)


def changed(data, offset, form, value):
    damaged = bytearray(data)
    struct.pack_into(form, damaged, offset, value)
    return bytes(damaged)


def test_heads_come_back():
    head = symbols_head()
    parsed = parse_head(pack_head(head), VIEW)
    for array in ("values", "codes"):
        assert (getattr(parsed, array) == getattr(head, array)).all()
    for array in ("rows", "columns", "thresholds"):
        assert (getattr(parsed.scales, array) == getattr(head.scales, array)).all()
    assert (parsed.coder, parsed.bits, parsed.word, parsed.view) == (Coder.SYMBOLS, 10, b"", VIEW)


def test_fixed_part_by_hand():
    data = pack_head(SlabHead(Coder.CONST, VIEW, word=b"\x80\x3f"))
    assert data == b"\x01\x01" + bytes(28) + b"\x80\x3f"
    assert parse_head(data, VIEW).word == b"\x80\x3f"
    assert pack_head(SlabHead(Coder.RAW, VIEW)) == b"\x00\x01" + bytes(28)


def rounded_head(coder=Coder.TCQ):
    head = symbols_head()
    tables = 2 if coder == Coder.TCQ else 1
    codes = table_codes(np.random.default_rng(5).integers(0, 50, (4 * tables, 40)) + 1)
    bias = np.array([[1, -128, 127], [3, 0, -5] if tables == 2 else [0, 0, 0]], np.int8)
    return SlabHead(coder, VIEW, scales=head.scales, codes=codes, step=2.0**-20, bias=bias)


@pytest.mark.parametrize("coder", [Coder.TCQ, Coder.ECSQ])
def test_heads_of_rounded_weights_come_back(coder):
    head = rounded_head(coder)
    parsed = parse_head(pack_head(head), VIEW)
    assert (parsed.coder, parsed.step) == (coder, 2.0**-20)
    assert (parsed.bias == head.bias).all()
    assert (parsed.codes == head.codes).all()


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (0, "<B", 4),  # half the tables, and points of a second quantiser
        (2, "<H", 256),
        (4, "<B", 1),
        (6, "<H", 1),
        (8, "<I", 1),
        (12, "<I", 1),
        (16, "<d", 0.0),
        (16, "<d", -1.0),
        (16, "<d", float("nan")),
        (16, "<d", float("inf")),
    ],
)
def test_contradictions_about_rounding_are_refused(offset, form, value):
    with pytest.raises(ChecksumMismatch):
        parse_head(changed(pack_head(rounded_head()), offset, form, value), VIEW)


def test_points_of_a_quantiser_that_is_not_there_are_refused():
    with pytest.raises(ChecksumMismatch, match="second"):
        parse_head(changed(pack_head(rounded_head(Coder.ECSQ)), 29, "<b", 1), VIEW)


@pytest.mark.parametrize("name", ["U8", "I32", "F8_E4M3"])
def test_only_floats_of_16_bits_are_rounded(name):
    with pytest.raises(ChecksumMismatch, match="16 bits"):
        parse_head(pack_head(rounded_head()), word_view(DTYPES[name], 100, 120))


def test_every_cut_and_longer_head_is_refused():
    heads = symbols_head(), rounded_head(), SlabHead(Coder.CONST, VIEW, word=b"ab"), SlabHead(Coder.RAW, VIEW)
    for head in heads:
        data = pack_head(head)
        for damaged in [*(data[:size] for size in range(len(data))), data + b"\0"]:
            with pytest.raises(ChecksumMismatch):
                parse_head(damaged, VIEW)


@pytest.mark.parametrize(
    ("offset", "form", "value"),
    [
        (1, "<B", 0),
        (1, "<B", 17),
        (2, "<H", 0),
        (2, "<H", 59),
        (2, "<H", 257),
        (4, "<B", 0),
        (4, "<B", 11),
        (4, "<B", 8),  # too few for the values
        (5, "<B", 1),
        (5, "<B", 7),
        (6, "<H", 59),
        (6, "<H", 61),
        (8, "<I", 1),
        (12, "<I", 1 << 31),
        (16, "<d", 0.5),
        (24, "<b", 1),
        (30, "<h", 1),  # thresholds fall
    ],
)
def test_contradictions_are_refused(offset, form, value):
    with pytest.raises(ChecksumMismatch):
        parse_head(changed(pack_head(symbols_head()), offset, form, value), VIEW)


def test_coders_of_later_versions_are_named():
    with pytest.raises(UnsupportedVersion, match="coder 9"):
        parse_head(changed(pack_head(symbols_head()), 0, "<B", 9), VIEW)


def test_an_unsorted_alphabet_is_refused():
    head = symbols_head()
    head.values[7] = head.values[6]
    with pytest.raises(ChecksumMismatch, match="alphabet"):
        parse_head(pack_head(head), VIEW)


def test_a_class_in_use_needs_a_table_and_an_empty_class_does_not():
    head = symbols_head()
    head.codes[2] = 0
    with pytest.raises(ChecksumMismatch, match="table"):
        parse_head(pack_head(head), VIEW)
    unused = symbols_head((-300, 0, 300))
    unused.codes[[0, 3]] = 0
    assert parse_head(pack_head(unused), VIEW).scales.occupied().tolist() == [False, True, True, False]


@pytest.mark.parametrize("name", ["U8", "I32"])
def test_integers_have_one_class_and_no_values(name):
    view = word_view(DTYPES[name], 100, 120)
    with pytest.raises(ChecksumMismatch):
        parse_head(pack_head(symbols_head()), view)
    codes = table_codes(np.ones((1, 255), np.int64))
    assert parse_head(pack_head(SlabHead(Coder.SYMBOLS, view, codes=codes)), view).codes.shape == (1, 255)


def test_tokens_have_255_symbols_at_most():
    view = word_view(DTYPES["I32"], 100, 120)
    codes = table_codes(np.ones((1, 256), np.int64))
    with pytest.raises(ChecksumMismatch, match="256 symbols"):
        parse_head(pack_head(SlabHead(Coder.SYMBOLS, view, codes=codes)), view)
