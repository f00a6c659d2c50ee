from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from hilm.errors import Cancelled
from hilm.lineage import records
from hilm.lineage.digest import DigestAccumulator, model_digest
from hilm.lineage.fingerprint import PROFILED, FingerprintPass, fingerprint
from hilm.lineage.gram import WORDS, GramAccumulator
from hilm.lineage.profile import ProfileAccumulator
from hilm.lineage.sketch import SketchAccumulator, embedding_key, fixed, matrix_key
from hilm.weights.checkpoint import open_checkpoint
from tests.lineage.family import (
    TABLE,
    bf16,
    cosine,
    cosines,
    f16,
    mixed,
    noisy,
    permutation,
    print_of,
    renamed,
    rotation,
    rounded,
    shuffled_units,
    signed,
    turned,
    with_layer_twice,
    without_layer,
    write_tokenizer,
)
from tests.tiny import bert_like, stored, write_model

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A gated model, and its fingerprint."""
    return mixed(), print_of(tmp_path_factory.mktemp("mixed"), mixed())


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return bert_like(), print_of(tmp_path_factory.mktemp("bert"), bert_like())


def slow_sums(tensors, table, kinds="ids-64/1"):
    """F1 and F2, matrix by matrix, straight from the definition."""
    from hilm.lineage.gram import Anchors  # noqa: PLC0415 - the oracle's own

    ids = np.floor(np.linspace(0, len(tensors[table]) - 1, 64)).astype(int)
    anchors = Anchors.from_rows(kinds, tensors[table][ids], np.ones(64, bool))
    position, anchored = np.zeros(1024, np.int64), np.zeros(2016, np.int64)
    for name, values in tensors.items():
        if values.ndim < 2 or min(values.shape) < 16:
            continue
        key = embedding_key(values.shape[1]) if name == table else matrix_key(*values.shape)
        sketch = SketchAccumulator(*values.shape, key)
        sketch.update(values.ravel(), 0)
        position += fixed(sketch.finish().vector)
        for side, size in (("rows", values.shape[0]), ("columns", values.shape[1])):
            if size == anchors.width and name != table:
                gram = GramAccumulator(anchors, *values.shape, side)
                gram.update(values.ravel(), 0)
                anchored += fixed(gram.finish())
    return position, anchored


# What a fingerprint is made of


def test_the_sums_are_those_of_the_matrices(base, bert):
    for (tensors, found), table in ((base, "model.embed_tokens.weight"), (bert, TABLE)):
        position, anchored = slow_sums(tensors, table)
        np.testing.assert_array_equal(found.position, position)
        np.testing.assert_array_equal(found.anchored, anchored)
        assert (found.kind, found.mask, found.coverage, found.nonfinite) == ("ids-64/1", 0, 1.0, 0)


def test_records_list_every_tensor_matrix_and_profile(bert):
    tensors, found = bert
    hashes = records.unpack(b"HLF0", found.hashes, records.HASHES, 32)
    assert sorted(hashes.names) == sorted(tensors)
    exact = {}
    for name, row in zip(hashes.names, hashes.rows, strict=True):
        digest = DigestAccumulator("F32", tensors[name].shape)
        digest.update(tensors[name].ravel(), tensors[name].ravel().view(np.uint8))
        exact[name] = digest.finish().exact
        assert int(row["exact"]).to_bytes(8, "little") == exact[name]
        assert row["parameters"] == tensors[name].size
        assert bool(row["prefix"]) == (name == TABLE)
    assert hashes.head == model_digest(exact.values())
    matrices = sorted(name for name, values in tensors.items() if values.ndim > 1)
    codes = records.unpack(b"HLF3", found.codes, records.CODES, records.CODES_HEAD.itemsize)
    profiles = records.unpack(b"HLF4", found.profile, records.PROFILES)
    assert sorted(codes.names) == matrices
    assert len(profiles.names) == PROFILED
    for name, row in zip(codes.names, codes.rows, strict=True):
        assert (row["rows"], row["columns"]) == tensors[name].shape
        assert int(row["exact"]).to_bytes(8, "little") == exact[name]
        assert row["flags"] == (records.IS_EMBEDDING if name == TABLE else records.HAS_GRAM)
        assert row["norm"] == pytest.approx(np.linalg.norm(tensors[name]), rel=1e-5)
    for name, row in zip(profiles.names, profiles.rows, strict=True):
        profile = ProfileAccumulator(*tensors[name].shape)
        profile.update(tensors[name].ravel(), 0)
        np.testing.assert_array_equal(row["figures"], profile.finish().fields)


def test_a_row_holds_the_stored_forms(bert):
    found = bert[1]
    row = found.to_row(bytes(32))
    assert row["flags"] == 0b11111 | 3 << 8
    assert len(row["code"]) == 64
    assert np.abs(row["position_vec"]).max() == np.abs(row["anchored_vec"]).max() == 127
    assert row["position_scale"] == pytest.approx(np.linalg.norm(row["position_vec"].astype(float)))
    assert cosine(row["position_vec"], found.position) > 0.999
    assert row["fingerprint_key"] == found.key(bytes(32)) != found.key(b"\x01" + bytes(31))


def test_other_anchors_make_another_key(tmp_path, bert):
    write_tokenizer(tmp_path, {"model": {"vocab": {f"▁{w}": i for i, w in enumerate(WORDS)}}})
    other = print_of(tmp_path, bert[0])
    assert other.kind == "text-64/1"
    np.testing.assert_array_equal(other.position, bert[1].position)
    assert other.key(bytes(32)) != bert[1].key(bytes(32))


# What must not matter


@pytest.mark.parametrize("shards", [2, 3])
def test_shards_do_not_matter(tmp_path, bert, shards):
    assert print_of(tmp_path, bert[0], shards=shards).identity == bert[1].identity


@settings(max_examples=6)
@given(st.randoms(use_true_random=False), st.booleans())
def test_order_and_names_do_not_matter(tmp_path_factory, bert, random, rename):
    names = list(bert[0])
    random.shuffle(names)
    tensors = {name: bert[0][name] for name in names}
    if rename:
        tensors = renamed(tensors, np.random.default_rng(random.randrange(1000)))
    assert print_of(tmp_path_factory.mktemp("order"), tensors).identity == bert[1].identity


def test_unicode_names_do_not_matter(tmp_path, bert):
    tensors = {f"слой {n} 🧠\u2028": v for n, v in enumerate(bert[0].values())}
    assert print_of(tmp_path, tensors).identity == bert[1].identity


def test_names_matter_only_to_tell_an_embedding_from_a_head(tmp_path, base):
    head = {"lm_head.weight": np.random.default_rng(8).standard_normal((1000, 64)).astype(np.float32)}
    both = print_of(tmp_path / "named", base[0] | head)
    np.testing.assert_array_equal(both.position, base[1].position)
    np.testing.assert_array_equal(both.anchored, base[1].anchored)
    nameless = print_of(tmp_path / "nameless", renamed(base[0] | head, np.random.default_rng(9)))
    assert nameless.kind is None
    assert not nameless.anchored.any()
    assert cosine(nameless.position, base[1].position) > 0.9


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_an_upcast_is_the_same_in_all_layers(tmp_path, dtype):
    tensors = rounded(mixed(), dtype)
    narrow = bf16(tensors) if dtype == "BF16" else f16(tensors)
    assert print_of(tmp_path / "up", tensors).identity == print_of(tmp_path / "narrow", narrow).identity


def test_one_changed_value_matters(tmp_path, bert):
    for number, name in enumerate(
        (TABLE, "encoder.layer.1.output.dense.weight", "embeddings.LayerNorm.bias")
    ):
        changed = bert[0][name].copy()
        changed.flat[-1] = np.nextafter(changed.flat[-1], np.float32(9))
        assert print_of(tmp_path / str(number), bert[0] | {name: changed}).identity != bert[1].identity


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("blas", [1, 2])
def test_threads_do_not_matter(tmp_path, bert, threads, blas):
    with threadpool_limits(blas, "blas"):
        assert print_of(tmp_path, bert[0], threads=threads).identity == bert[1].identity


CHILD = """
import sys
from hilm.lineage.fingerprint import fingerprint
from hilm.weights.checkpoint import open_checkpoint
with open_checkpoint(sys.argv[1]) as checkpoint:
    sys.stdout.buffer.write(fingerprint(checkpoint).identity)
"""


def test_another_process_finds_the_same(tmp_path, base):
    folder = write_model(tmp_path, base[0])
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    for threads in ("1", "2"):
        environment = os.environ | {"OPENBLAS_NUM_THREADS": threads, "PYTHONPATH": path}
        done = subprocess.run(
            [sys.executable, "-c", CHILD, folder], env=environment, capture_output=True, check=True
        )
        assert done.stdout == base[1].identity


def test_a_pass_fed_by_somebody_else_finds_the_same(tmp_path, bert):
    with open_checkpoint(write_model(tmp_path, bert[0])) as checkpoint:
        work = FingerprintPass(checkpoint)
        for block in checkpoint.blocks(include_integer=True, poison=True):
            work.update(block)
        assert work.finish().identity == bert[1].identity


def test_every_value_is_reported_once(tmp_path, bert):
    ticks = []
    with open_checkpoint(write_model(tmp_path, bert[0])) as checkpoint:
        fingerprint(checkpoint, ticks.append, threads=2)
    assert sum(ticks) == sum(v.size for v in bert[0].values())


def test_an_error_on_the_way_surfaces(tmp_path, bert):
    def cancel(_):
        raise Cancelled("enough")

    with (
        open_checkpoint(write_model(tmp_path, bert[0])) as checkpoint,
        pytest.raises(Cancelled, match="enough"),
    ):
        fingerprint(checkpoint, cancel, threads=2)


# What must hardly matter


@pytest.mark.parametrize("cast", [bf16, f16])
def test_casts_keep_both_layers(tmp_path, base, cast):
    assert min(cosines(base[1], print_of(tmp_path, cast(base[0])))) >= 0.999


@pytest.mark.parametrize("turn", [permutation, signed, rotation])
def test_the_gram_survives_any_turn_of_the_stream(tmp_path, base, turn):
    rng = np.random.default_rng(3)
    other = print_of(tmp_path, shuffled_units(turned(base[0], turn(64, rng)), rng))
    sketch, gram = cosines(base[1], other)
    assert gram >= 0.9999
    assert abs(32 * sketch) < 4.5


@pytest.mark.parametrize("turn", [permutation, rotation])
def test_square_matrices_blur_a_turn(tmp_path, bert, turn):
    rng = np.random.default_rng(4)
    other = print_of(tmp_path, shuffled_units(turned(bert[0], turn(64, rng)), rng))
    sketch, gram = cosines(bert[1], other)
    assert 0.85 <= gram < 0.9999
    assert abs(32 * sketch) < 4.5


def test_wide_blocks_are_looked_at_in_part(tmp_path):
    """Units in another order then change which of them count: most of the similarity stays."""
    wide = mixed(hidden=1024)
    found = [print_of(tmp_path / str(n), t) for n, t in enumerate((wide, mixed(1, hidden=1024)))]
    other = print_of(tmp_path / "x", shuffled_units(wide, np.random.default_rng(5)))
    assert 0.7 < cosine(found[0].anchored, other.anchored) < 0.9999
    assert abs(cosine(found[0].anchored, found[1].anchored)) < 0.3


def test_hidden_units_in_another_order_leave_the_gram(tmp_path, base):
    other = print_of(tmp_path, shuffled_units(base[0], np.random.default_rng(5)))
    assert cosine(base[1].anchored, other.anchored) >= 0.9999


def test_rescaled_matrices_are_the_same(tmp_path, base):
    scaled = {n: v * np.float32(2.0 ** (i % 7 - 3)) for i, (n, v) in enumerate(base[0].items()) if v.ndim > 1}
    assert min(cosines(base[1], print_of(tmp_path, base[0] | scaled))) >= 1 - 1e-9


def test_layers_dropped_or_repeated_keep_the_sketch(tmp_path, bert):
    for name, tensors in (("drop", without_layer(bert[0], 2)), ("twice", with_layer_twice(bert[0], 2, 4))):
        assert cosine(bert[1].position, print_of(tmp_path / name, tensors).position) >= 0.8


def grown(tensors, table, rows):
    more = np.random.default_rng(6).standard_normal((rows, tensors[table].shape[1]))
    return tensors | {table: np.concatenate([tensors[table], (0.02 * more).astype(np.float32)])}


def test_a_vocabulary_grown_behind_the_first_rows_changes_no_bit(tmp_path):
    """At 2600 tokens and more the fixed ids of models without tokenizer stay where they are."""
    tensors = bert_like(layers=2, vocabulary=2700)
    small, large = print_of(tmp_path / "a", tensors), print_of(tmp_path / "b", grown(tensors, TABLE, 64))
    np.testing.assert_array_equal(small.position, large.position)
    np.testing.assert_array_equal(small.anchored, large.anchored)
    assert small.options == large.options
    prefixes = [
        records.unpack(b"HLF0", f.hashes, records.HASHES, 32).rows["prefix"].max() for f in (small, large)
    ]
    assert prefixes[0] == prefixes[1] != 0


def test_a_small_vocabulary_grown_moves_the_ids_and_says_so(tmp_path, bert):
    large = print_of(tmp_path, grown(bert[0], TABLE, 64))
    assert large.options != bert[1].options
    assert cosine(large.position, bert[1].position) > 0.9


def test_a_vocabulary_grown_beside_a_tokenizer_changes_no_anchor(tmp_path):
    tensors = bert_like(layers=2, vocabulary=2100)
    found = []
    for name, model in (("a", tensors), ("b", grown(tensors, TABLE, 64))):
        write_tokenizer(tmp_path / name, {"model": {"vocab": {f"▁{w}": 30 * i for i, w in enumerate(WORDS)}}})
        found.append(print_of(tmp_path / name, model))
    np.testing.assert_array_equal(found[0].anchored, found[1].anchored)
    np.testing.assert_array_equal(found[0].position, found[1].position)


def test_a_table_by_columns_is_the_same_table(tmp_path, base):
    tensors = dict(base[0])
    tensors["model.embed_tokens.weight"] = np.ascontiguousarray(tensors["model.embed_tokens.weight"].T)
    other = print_of(tmp_path, tensors)
    np.testing.assert_array_equal(base[1].position, other.position)
    np.testing.assert_array_equal(base[1].anchored, other.anchored)


def test_stacked_experts_are_the_experts_stored_apart(tmp_path, base):
    experts = np.random.default_rng(7).standard_normal((5, 40, 64)).astype(np.float32)
    stacked = print_of(tmp_path / "a", base[0] | {"experts.w1": experts})
    apart = print_of(tmp_path / "b", base[0] | {f"experts.{i}.w1": e for i, e in enumerate(experts)})
    np.testing.assert_array_equal(stacked.position, apart.position)
    np.testing.assert_array_equal(stacked.anchored, apart.anchored)
    codes = [
        records.unpack(b"HLF3", f.codes, records.CODES, records.CODES_HEAD.itemsize) for f in (stacked, apart)
    ]
    assert codes[0].names.count("experts.w1") == 5
    for field in ("position", "norm"):
        assert sorted(map(bytes, codes[0].rows[field])) == sorted(map(bytes, codes[1].rows[field]))


# What makes strangers


def test_shuffled_values_are_a_stranger(tmp_path, bert):
    rng = np.random.default_rng(10)
    other = print_of(tmp_path, {n: rng.permutation(v.ravel()).reshape(v.shape) for n, v in bert[0].items()})
    sketch, gram = cosines(bert[1], other)
    assert abs(32 * sketch) < 4.5
    assert abs(gram) < 0.3


def test_unrelated_models_of_one_shape(tmp_path, bert):
    found = [print_of(tmp_path / str(n), bert_like(n)) for n in range(1, 7)]
    values = [32 * cosine(a.position, b.position) for i, a in enumerate(found) for b in found[:i]]
    assert max(map(abs, values)) < 4.5
    assert abs(np.mean(values)) < 1


# Odd checkpoints


def test_sinusoid_tables_are_left_out(tmp_path, bert):
    angle = np.arange(128)[:, None] / 10000.0 ** (np.arange(32) / 32)
    table = np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)
    other = print_of(tmp_path, bert[0] | {"encoder.positions": table})
    np.testing.assert_array_equal(other.position, bert[1].position)
    np.testing.assert_array_equal(other.anchored, bert[1].anchored)
    assert (
        cosine(print_of(tmp_path / "x", bert[0] | {"p": table * 1.1}).position, bert[1].position) < 1 - 1e-9
    )


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_counted(tmp_path, base, value):
    """One matrix is skipped; no other one is touched, and nothing warns."""
    name = "model.layers.1.mlp.up_proj.weight"
    broken = base[0][name].copy()
    broken[3, 5] = broken[7] = value
    found = print_of(tmp_path / "a", base[0] | {name: broken})
    assert found.nonfinite == 65
    without = {n: v for n, v in base[0].items() if n != name}
    clean = print_of(tmp_path / "b", without)
    np.testing.assert_array_equal(found.position, clean.position)
    np.testing.assert_array_equal(found.anchored, clean.anchored)


def test_an_anchor_that_is_not_finite_is_masked(tmp_path, base):
    table = base[0]["model.embed_tokens.weight"].copy()
    table[999] = np.nan
    found = print_of(tmp_path, base[0] | {"model.embed_tokens.weight": table})
    assert found.mask == 1 << 63
    assert found.kind == "ids-64/1"
    assert found.nonfinite == 64


def test_zeros_and_constants_are_skipped_without_a_count(tmp_path, base):
    odd = {"zero": np.zeros((64, 40), np.float32), "same": np.full((40, 64), 3, np.float32)}
    found = print_of(tmp_path, base[0] | odd)
    np.testing.assert_array_equal(found.position, base[1].position)
    assert found.nonfinite == 0


def test_vectors_alone(tmp_path):
    found = print_of(tmp_path, {"a": np.ones(64, np.float32), "b": np.zeros((), np.float32)})
    assert not found.position.any()
    assert (found.kind, found.coverage) == (None, 1.0)
    assert records.unpack(b"HLF3", found.codes, records.CODES, records.CODES_HEAD.itemsize).names == ()
    assert records.unpack(b"HLF4", found.profile, records.PROFILES).names == ()
    row = found.to_row(bytes(32))
    assert row["flags"] == 0b11001
    assert not row["position_vec"].any()


def test_empty_tensors(tmp_path, base):
    empty = {"none": np.zeros((0, 64), np.float32), "flat": np.zeros(0, np.float32)}
    found = print_of(tmp_path, base[0] | empty)
    np.testing.assert_array_equal(found.position, base[1].position)
    assert len(records.unpack(b"HLF0", found.hashes, records.HASHES, 32).rows) == len(base[0]) + 2


def test_integers_are_told_apart_to_the_last_bit(tmp_path):
    """They are digested as stored: 2^24 and 2^24 + 1 are one value in float32."""
    found = [
        print_of(
            tmp_path / str(n), {"a": np.full((32, 32), 2**24, np.int64) + np.eye(32, dtype=np.int64) * n}
        )
        for n in range(2)
    ]
    assert found[0].identity != found[1].identity
    assert found[0].kind is None
    assert found[0].coverage == 1.0


def test_packed_values_count_as_not_covered(tmp_path, base):
    values = sum(v.size for v in base[0].values() if v.ndim > 1)
    found = print_of(tmp_path, base[0] | {"x.weight": ("F4", (64, 64), bytes(range(256)) * 8)})
    np.testing.assert_array_equal(found.position, base[1].position)
    assert found.coverage == pytest.approx(values / (values + 64 * 64))
    other = print_of(tmp_path / "b", base[0] | {"x.weight": ("F4", (64, 64), bytes(2047) + b"\x01")})
    assert found.identity != other.identity


def test_convolutions_are_matrices(tmp_path):
    kernel = np.random.default_rng(0).standard_normal((64, 16, 3, 3)).astype(np.float32)
    four, two = ({"conv": k} for k in (kernel, kernel.reshape(64, 144)))
    found = [print_of(tmp_path / str(n), t) for n, t in enumerate((four, two))]
    np.testing.assert_array_equal(found[0].position, found[1].position)
    assert found[0].position.any()


def test_complex_numbers_are_pairs_of_values(tmp_path):
    rng = np.random.default_rng(1)
    values = (rng.standard_normal((64, 32)) + 1j * rng.standard_normal((64, 32))).astype(np.complex64)
    pairs = values.view(np.float32)
    found = [print_of(tmp_path / str(n), {"w": t}) for n, t in enumerate((values, pairs))]
    np.testing.assert_array_equal(found[0].position, found[1].position)


def test_aliases_are_read_once(tmp_path, base):
    table = "model.embed_tokens.weight"
    found = print_of(tmp_path, base[0], metadata={"lm_head.weight": table})
    assert found.identity == base[1].identity


def test_gpt2_layout(tmp_path):
    """Conv1D stores weights transposed; the stream then runs down the rows."""
    rng = np.random.default_rng(2)

    def matrix(*shape):
        return (0.02 * rng.standard_normal(shape)).astype(np.float32)

    tensors = {"transformer.wte.weight": matrix(800, 64), "transformer.wpe.weight": matrix(100, 64)}
    for n in range(3):
        block = f"transformer.h.{n}."
        tensors |= {block + "attn.c_attn.weight": matrix(64, 192), block + "mlp.c_fc.weight": matrix(64, 256)}
        tensors |= {block + "mlp.c_proj.weight": matrix(256, 64)}
    turn = rotation(64, rng)
    other = {
        n: v @ turn if "c_proj" in n or "wte" in n or "wpe" in n else turn.T @ v for n, v in tensors.items()
    }
    other = {n: v.astype(np.float32) for n, v in other.items()}
    sketch, gram = cosines(print_of(tmp_path / "a", tensors), print_of(tmp_path / "b", other))
    assert gram >= 0.9999
    assert abs(32 * sketch) < 4.5


def test_a_t5_stored_with_all_its_copies(tmp_path):
    rng = np.random.default_rng(3)
    shared = (0.02 * rng.standard_normal((900, 64))).astype(np.float32)
    names = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    blocks = {
        f"{side}.block.{n}.layer.{k}.{part}.weight": (0.02 * rng.standard_normal((64, 64))).astype(np.float32)
        for side in ("encoder", "decoder")
        for n in range(2)
        for k, part in ((0, "SelfAttention.q"), (1, "DenseReluDense.wi"))
    }
    one = print_of(tmp_path / "one", {names[0]: shared} | blocks)
    three = print_of(tmp_path / "three", dict.fromkeys(names, shared) | blocks)
    np.testing.assert_array_equal(one.position, three.position)
    np.testing.assert_array_equal(one.anchored, three.anchored)


def test_noise_keeps_a_family_together(tmp_path, base):
    assert cosines(base[1], print_of(tmp_path, noisy(base[0], 0.1, np.random.default_rng(11))))[0] > 0.95
    mixture = {n: stored(v, "BF16") for n, v in noisy(base[0], 0.5, np.random.default_rng(12)).items()}
    assert cosines(base[1], print_of(tmp_path / "half", mixture))[0] > 0.7
