from __future__ import annotations

import json
from itertools import combinations

import ml_dtypes
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants
from safetensors.numpy import save_file

from hilm.lineage.comparison import compare
from hilm.lineage.verdict import verdict
from hilm.weights.checkpoint import open_checkpoint
from tests.tiny import write_model
from tests.weights.other_formats import write_gguf
from tests.weights.packing import gptq_config, gptq_model

WIDTH, BLOCKS, HIDDEN, VOCABULARY = 64, 6, 256, 1000


def bert(seed):
    """A random encoder with what trained ones have: uneven columns and a token table with a common part."""
    rng = np.random.default_rng([seed, 20])
    scale = rng.lognormal(0, 0.3, WIDTH)

    def matrix(rows, columns):
        return (0.05 * rng.normal(size=(rows, columns))).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": matrix(VOCABULARY, WIDTH) * scale.astype(np.float32) + 0.01,
        "embeddings.position_embeddings.weight": matrix(128, WIDTH),
        "embeddings.LayerNorm.weight": rng.normal(1, 0.05, WIDTH).astype(np.float32),
    }
    for i in range(BLOCKS):
        block = f"encoder.layer.{i}."
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
        ):
            tensors[block + part + ".weight"] = matrix(WIDTH, WIDTH)
            tensors[block + part + ".bias"] = rng.normal(0, 0.02, WIDTH).astype(np.float32)
        tensors[block + "intermediate.dense.weight"] = matrix(HIDDEN, WIDTH) * scale.astype(np.float32)
        tensors[block + "intermediate.dense.bias"] = rng.normal(0, 0.02, HIDDEN).astype(np.float32)
        tensors[block + "output.dense.weight"] = matrix(WIDTH, HIDDEN)
        tensors[block + "output.LayerNorm.weight"] = rng.normal(1, 0.05, WIDTH).astype(np.float32)
    return tensors


def int8(tensors):
    def quantised(w):
        step = np.abs(w).max(axis=1, keepdims=True) / 127
        return (np.rint(w / step) * step).astype(np.float32)

    return {n: quantised(w) if w.ndim == 2 else w for n, w in tensors.items()}


def pruned(tensors):
    def sparse(w):
        return np.where(np.abs(w) < np.median(np.abs(w)), np.float32(0), w)

    return {n: sparse(w) if w.ndim == 2 else w for n, w in tensors.items()}


def tuned(tensors, amount=0.04, seed=1):
    rng = np.random.default_rng([seed, 21])

    def moved(w):
        return (w + amount * np.std(w) * rng.normal(size=w.shape)).astype(np.float32)

    return {n: moved(w) for n, w in tensors.items()}


def adapted(tensors, rank=4, seed=1):
    rng = np.random.default_rng([seed, 22])

    def moved(w):
        update = rng.normal(size=(w.shape[0], rank)) @ rng.normal(size=(rank, w.shape[1]))
        return (w + 0.1 * np.std(w) * update / np.sqrt(rank)).astype(np.float32)

    return {n: moved(w) if "self" in n and w.ndim == 2 else w for n, w in tensors.items()}


def turned(tensors, turn, seed=1):
    """The same weights in another basis of the residual stream, with hidden units shuffled."""
    rng = np.random.default_rng([seed, 23])
    orders = {}

    def moved(name, w):
        order = orders.setdefault(".".join(name.split(".")[:3]), rng.permutation(HIDDEN))
        if "intermediate" in name:
            w = w[order]
        if name.endswith("output.dense.weight"):
            return turn.T @ (w if "attention" in name else w[:, order])
        return (
            w if name.endswith(("self.query.bias", "self.key.bias", "intermediate.dense.bias")) else w @ turn
        )

    return {n: moved(n, w).astype(np.float32) for n, w in tensors.items()}


def permutation(seed=1):
    return np.eye(WIDTH)[np.random.default_rng([seed, 24]).permutation(WIDTH)]


def rotation(seed=1):
    return np.linalg.qr(np.random.default_rng([seed, 25]).normal(size=(WIDTH, WIDTH)))[0]


def without_blocks(tensors, dropped):
    kept = [i for i in range(BLOCKS) if i not in dropped]
    new = {f"encoder.layer.{old}.": f"encoder.layer.{i}." for i, old in enumerate(kept)}
    outer = {n: w for n, w in tensors.items() if not n.startswith("encoder")}
    inner = {new[o] + n.removeprefix(o): w for n, w in tensors.items() for o in new if n.startswith(o)}
    return outer | inner


def renamed(tensors):
    names = sorted(tensors, key=lambda n: n[::-1])
    return {f"t{i:03d}": tensors[n] for i, n in enumerate(names)}


def resized_vocabulary(tensors, rows):
    table = tensors["embeddings.word_embeddings.weight"]
    more = bert(99)["embeddings.word_embeddings.weight"]
    return tensors | {"embeddings.word_embeddings.weight": np.concatenate([table, more])[:rows]}


def save(folder, tensors, shards=1):
    folder.mkdir()
    names = list(tensors)
    parts = [names[i::shards] for i in range(shards)]
    for i, part in enumerate(parts):
        content = {n: np.ascontiguousarray(tensors[n]) for n in part}
        save_file(content, folder / ("model.safetensors" if shards == 1 else f"model-{i}.safetensors"))
    if shards > 1:
        where = {n: f"model-{i}.safetensors" for i, part in enumerate(parts) for n in part}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.fixture
def judge(tmp_path):
    """Write two checkpoints, compare them, judge them."""

    def judged(a, b, shards=1):
        folders = save(tmp_path / "base", a), save(tmp_path / "other", b, shards)
        with open_checkpoint(folders[0]) as first, open_checkpoint(folders[1]) as second:
            comparison = compare(first, second)
        return comparison, verdict(comparison.evidence)

    return judged


BASE = bert(0)


def test_identical_copy(judge):
    comparison, result = judge(BASE, BASE)
    assert result.relation == "identical"
    assert result.score == 1.0
    assert result.p_value < 1e-15
    assert (
        [p.a for p in comparison.pairs] == [p.b for p in comparison.pairs] == sorted(BASE)
    )  # as the writer stores them
    assert all(p.identical and p.cosine == 1 and p.rel_l2 == 0 for p in comparison.pairs)


def test_renamed_and_resharded_is_identical(judge):
    base = BASE | {f"zeros.{i}": np.zeros(WIDTH, np.float32) for i in range(3)}
    comparison, result = judge(base, renamed(base), shards=2)
    assert result.relation == "identical"
    assert not comparison.only_a
    assert not comparison.only_b


@pytest.mark.parametrize("kind", ["BF16", "F16"])
@pytest.mark.parametrize("stored_wide", [False, True])
def test_cast(judge, kind, stored_wide):
    narrow = {"BF16": ml_dtypes.bfloat16, "F16": np.float16}[kind]
    cast = {n: w.astype(narrow) for n, w in BASE.items()}
    cast["embeddings.LayerNorm.weight"] = BASE["embeddings.LayerNorm.weight"]  # often left alone
    _, result = judge(BASE, {n: w.astype(np.float32) for n, w in cast.items()} if stored_wide else cast)
    assert result.relation == "dtype-cast"
    assert result.details["cast"] == kind
    assert result.level == "established"


def test_a_small_fine_tune_is_no_cast(judge):
    cast = {n: w.astype(ml_dtypes.bfloat16) for n, w in tuned(BASE).items()}
    assert judge(BASE, cast)[1].relation == "fine-tune"


def test_quantised(judge):
    _, result = judge(BASE, int8(BASE))
    assert result.relation == "quantized"
    assert result.details["quantization"] == {"model": "other", "of": "base", "bits": 8, "group": "row"}
    assert "other is base or a near relative" in result.sentence


def test_pruned(judge):
    _, result = judge(BASE, pruned(BASE))
    assert result.relation == "pruned"
    assert result.details["pruning"]["zeros"] == pytest.approx(0.5, abs=0.01)
    assert result.details["pruning"]["model"] == "other"


def test_fine_tune(judge):
    comparison, result = judge(BASE, tuned(BASE))
    assert result.relation == "fine-tune"
    assert result.score > 0.99
    assert result.z > 30
    assert "adapter_rank" not in result.details
    matrices = [p for p in comparison.pairs if "self.query.weight" in p.a]
    assert [p.rel_l2 for p in matrices] == pytest.approx([0.04] * BLOCKS, rel=0.1)


def test_merged_adapter(judge):
    _, result = judge(BASE, adapted(BASE))
    assert result.relation == "fine-tune"
    assert result.details["adapter_rank"] == 4
    assert result.details["partly_frozen"]


@pytest.mark.parametrize(("kind", "turn"), [("permutation", permutation()), ("rotation", rotation())])
def test_another_basis(judge, kind, turn):
    comparison, result = judge(BASE, turned(BASE, turn))
    assert result.relation == "permuted"
    assert result.p_value < 1e-6
    assert result.details["turn"] == kind
    assert comparison.evidence.direct < 0.3
    assert comparison.evidence.units > 0.9
    assert comparison.evidence.tokens > 0.9


def gated(seed):
    """Feed-forward parts of a gated decoder with an untied head."""
    rng = np.random.default_rng([seed, 26])
    shapes = {"gate_proj": (HIDDEN, WIDTH), "up_proj": (HIDDEN, WIDTH), "down_proj": (WIDTH, HIDDEN)}
    blocks = {
        f"model.layers.{i}.mlp.{part}.weight": rng.normal(size=shape)
        for i in range(BLOCKS)
        for part, shape in shapes.items()
    }
    tables = {
        n: rng.normal(size=(VOCABULARY, WIDTH)) for n in ("model.embed_tokens.weight", "lm_head.weight")
    }
    return tables | blocks


def test_gated_blocks_and_transposed_storage(judge):
    rng, turn, base = np.random.default_rng(3), permutation(), gated(0)
    orders = [rng.permutation(HIDDEN) for _ in range(BLOCKS)]
    other = {n: w @ turn for n, w in base.items() if "layers" not in n}
    for i, order in enumerate(orders):
        block = f"model.layers.{i}.mlp."
        for part in ("gate_proj.weight", "up_proj.weight"):
            other[block + part] = (base[block + part][order] @ turn).T
        other[block + "down_proj.weight"] = (turn.T @ base[block + "down_proj.weight"][:, order]).T
    base, other = ({n: w.astype(np.float32) for n, w in t.items()} for t in (base, other))
    comparison, result = judge(base, other)
    assert result.p_value < 1e-6
    assert comparison.evidence.units > 0.99
    assert result.relation == "permuted"


def test_permuted_fine_tuned_and_renamed(judge):
    _, result = judge(BASE, renamed(turned(tuned(BASE), permutation())))
    assert result.relation == "permuted"


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_unrelated(judge, seed):
    comparison, result = judge(BASE, bert(seed))
    assert result.relation == "independent"
    assert result.p_value > 1e-3
    assert abs(comparison.evidence.tokens) < 0.5
    assert "no relation found" in result.sentence


def test_scores_of_unrelated_pairs_follow_their_null(tmp_path):
    models = [renamed(bert(s)) if s % 2 else bert(s) for s in range(6)]
    folders = [save(tmp_path / str(s), model) for s, model in enumerate(models)]
    found = []
    for i, j in combinations(range(6), 2):
        with open_checkpoint(folders[i]) as first, open_checkpoint(folders[j]) as second:
            found.append(compare(first, second).evidence)
    z = np.array([32 * e.sketch for e in found if e.sketch is not None])
    assert len(z) == len(found) == 15
    assert abs(z.mean()) < 0.8  # three standard errors
    assert 0.5 < z.std(ddof=1) < 1.6
    assert all(verdict(e).relation == "independent" for e in found)


def test_shuffled_values_are_unrelated(judge):
    rng = np.random.default_rng(9)
    shuffled = {n: rng.permutation(w.ravel()).reshape(w.shape) for n, w in BASE.items()}
    assert judge(BASE, shuffled)[1].relation == "independent"


def test_dropped_blocks_are_a_subset(judge):
    comparison, result = judge(BASE, without_blocks(BASE, {1, 4}))
    assert result.relation == "subset"
    assert comparison.evidence.b.identical == 1.0
    assert comparison.evidence.a.identical < 1.0
    assert "changes" in result.details
    assert {p.a for p in comparison.pairs if "layer.1" in p.b} == {n for n in BASE if "layer.2" in n}


def test_dropped_blocks_and_training_are_resized(judge):
    _, result = judge(BASE, tuned(without_blocks(BASE, {1, 4})))
    assert result.relation == "resized"
    assert result.details["changes"] == ["depth"]


def test_repeated_blocks_are_a_superset(judge):
    more = BASE | {n.replace("layer.5", "layer.6"): w for n, w in BASE.items() if "layer.5" in n}
    comparison, result = judge(BASE, more)
    assert result.relation == "subset"
    assert result.details["changes"] == ["depth"]
    assert "every value of base is also in other" in result.sentence
    assert not comparison.only_b


@pytest.mark.parametrize("rows", [700, 1064])
def test_vocabulary_of_another_length_is_a_subset(judge, rows):
    comparison, result = judge(BASE, resized_vocabulary(BASE, rows))
    assert result.relation == "subset"
    assert "vocabulary" in result.details["changes"]
    table = next(p for p in comparison.pairs if "word" in p.a)
    assert table.values == min(rows, VOCABULARY) * WIDTH
    assert table.identical


def test_trained_with_a_longer_vocabulary_is_resized(judge):
    _, result = judge(BASE, resized_vocabulary(tuned(BASE), 1064))
    assert result.relation == "resized"
    assert result.details["changes"] == ["vocabulary"]


def test_heavy_training_shares_an_ancestor(judge):
    _, result = judge(BASE, tuned(BASE, amount=0.9))
    assert result.relation == "shares-ancestor"


def test_the_order_of_the_two_does_not_matter(judge, tmp_path):
    forth = judge(BASE, tuned(BASE))[0].evidence
    folders = tmp_path / "other", tmp_path / "base"
    with open_checkpoint(folders[0]) as first, open_checkpoint(folders[1]) as second:
        back = compare(first, second).evidence
    assert back.sketch == pytest.approx(forth.sketch, abs=1e-12)
    assert back.direct == pytest.approx(forth.direct, abs=1e-12)


def test_integers_stacks_vectors_and_values_that_are_not_finite(judge):
    rng = np.random.default_rng(4)
    odd = {
        "experts": rng.normal(size=(4, 48, 40)).astype(np.float32),
        "ids": np.arange(2**40, 2**40 + 9),
        "empty": np.empty((0, 5), np.float32),
        "scalar": np.float32(3).reshape(()),
        "broken": np.array([[np.nan, 1.0], [np.inf, 2.0]], np.float32),
        "nothing": np.zeros(7, np.float32),
    }
    other = odd | {"ids": odd["ids"] + 1, "nothing": np.ones(7, np.float32)}
    comparison, result = judge(odd, other)
    found = {p.a: p for p in comparison.pairs}
    assert result.relation == "independent" or result.details["partly_frozen"]
    assert found["experts"].identical
    assert found["broken"].identical
    assert not found["ids"].identical  # equal as float32, not as stored
    assert found["nothing"].cosine == 0.0
    assert found["nothing"].rel_l2 == 1.0


def test_fixed_position_tables_are_no_evidence(judge):
    angles = np.arange(128)[:, None] / 10000 ** (np.arange(32) / 32)
    table = np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)
    few = ("embeddings.word", "layer.0.attention.self.query")
    a, b = (
        {n: w for n, w in bert(s).items() if n.startswith(("x",)) or any(f in n for f in few)} for s in (0, 5)
    )
    comparison, result = judge(a | {"positions": table}, b | {"positions": table})
    assert result.relation == "independent"
    assert abs(comparison.evidence.sketch) < 0.15


def cosine_twin(x, y):
    x, y = x.astype(np.float64), y.astype(np.float64)
    if x.ndim == 2:
        x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float((x * y).sum() / np.sqrt((x * x).sum() * (y * y).sum()))


def test_the_table_equals_a_plain_computation(judge):
    other = tuned(bert(0), amount=0.5)
    for pair in judge(BASE, other)[0].pairs:
        x, y = BASE[pair.a], other[pair.b]
        assert pair.cosine == pytest.approx(cosine_twin(x, y), abs=1e-9)
        distance = np.linalg.norm(x.astype(float) - y) / max(np.linalg.norm(x), np.linalg.norm(y))
        assert pair.rel_l2 == pytest.approx(distance, rel=1e-5)


def shallow(tensors):
    """Its first two blocks."""
    return {name: w for name, w in tensors.items() if ".layer." not in name or name.split(".")[2] in "01"}


def test_bits_are_those_that_the_scheme_states(tmp_path):
    tensors = shallow(bert(1))
    packed, plain = gptq_model(tensors)
    write_model(tmp_path / "packed", packed, config=gptq_config())
    write_model(tmp_path / "plain", plain)
    write_model(tmp_path / "base", tensors)
    with open_checkpoint(tmp_path / "base") as base, open_checkpoint(tmp_path / "packed") as other:
        found = verdict(compare(base, other).evidence)
        assert found.relation == "quantized"
        assert found.details["quantization"]["bits"] == 4
        with open_checkpoint(tmp_path / "plain") as same:
            assert verdict(compare(same, other).evidence).relation == "identical"


def test_bits_are_those_of_the_blocks_of_gguf(tmp_path):
    tensors = shallow(bert(1))
    blocks = {
        name: (quants.quantize(w, GGMLQuantizationType.Q4_0), "Q4_0") if w.ndim == 2 else torch.from_numpy(w)
        for name, w in tensors.items()
    }
    write_gguf(tmp_path / "model.gguf", blocks)
    write_model(tmp_path / "base", tensors)
    with open_checkpoint(tmp_path / "base") as base, open_checkpoint(tmp_path / "model.gguf") as other:
        found = verdict(compare(base, other).evidence)
    assert found.relation == "quantized"
    assert found.details["quantization"] == {"model": "model", "of": "base", "bits": 4, "group": None}
