from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

from hilm.lineage.anatomy import dissect
from hilm.lineage.comparison import compare
from hilm.lineage.statistics import units_tail
from hilm.lineage.units import BLOCKS, find_turn, match_units
from hilm.weights.checkpoint import open_checkpoint

WIDTH, HIDDEN, VOCABULARY, DEPTH = 48, 160, 900, 5
TABLE = "model.embed_tokens.weight"
PARTS = ("gate_proj", "up_proj", "down_proj")


def weight(block, part):
    return f"model.layers.{block}.mlp.{part}.weight"


def decoder(seed, depth=DEPTH):
    """Token table and gated feed-forward blocks with uneven columns, as trained ones have."""
    rng = np.random.default_rng([seed, 30])
    scale = rng.lognormal(0, 0.3, WIDTH)
    tensors = {TABLE: rng.normal(size=(VOCABULARY, WIDTH)) * scale + 0.2}
    for i in range(depth):
        for part in PARTS:
            matrix = rng.normal(size=(HIDDEN, WIDTH)) * scale
            tensors[weight(i, part)] = matrix.T if part == "down_proj" else matrix
    return tensors


def moved(tensors, basis, seed=1):
    """The same weights in another basis, possibly of a wider residual stream, with hidden units shuffled."""
    rng, depth = np.random.default_rng([seed, 31]), len(tensors) // len(PARTS)
    out = {TABLE: tensors[TABLE] @ basis}
    for i in range(depth):
        order = rng.permutation(HIDDEN)
        for part in PARTS[:2]:
            out[weight(i, part)] = tensors[weight(i, part)][order] @ basis
        out[weight(i, "down_proj")] = basis.T @ tensors[weight(i, "down_proj")][:, order]
    return out


def noisy(tensors, amount):
    rng = np.random.default_rng(32)
    return {n: w + amount * w.std() * rng.normal(size=w.shape) for n, w in tensors.items()}


def signed_permutation():
    rng = np.random.default_rng(33)
    return np.eye(WIDTH)[rng.permutation(WIDTH)] * rng.choice([-1, 1], WIDTH)


def isometry(width):
    """Orthonormal rows [48, width]: a rotation, or a rotation into a wider stream."""
    return np.linalg.qr(np.random.default_rng(34).normal(size=(width, width)))[0][:WIDTH]


BASE = decoder(0)


@pytest.fixture
def opened(tmp_path):
    """Write two checkpoints and open them."""
    checkpoints = []

    def both(a, b):
        for name, tensors in (("a", a), ("b", b)):
            content = {n: np.ascontiguousarray(w, np.float32) for n, w in tensors.items()}
            save_file(content, tmp_path / f"{name}.safetensors")
            checkpoints.append(open_checkpoint(tmp_path / f"{name}.safetensors"))
        return checkpoints

    yield both
    for checkpoint in checkpoints:
        checkpoint.close()


@pytest.mark.parametrize("basis", [signed_permutation(), isometry(WIDTH), isometry(WIDTH + 16)])
def test_the_same_weights_match_in_any_basis_and_width(opened, basis):
    units = match_units(*opened(BASE, moved(BASE, basis)))
    assert units.cosine == pytest.approx(1.0, abs=1e-4)
    assert units.tokens == pytest.approx(1.0, abs=1e-4)
    assert units.controls == DEPTH * DEPTH - DEPTH
    assert units_tail(units.z, units.controls) < 1e-6


def test_relatives_match_in_part(opened):
    units = match_units(*opened(BASE, moved(noisy(BASE, 0.3), isometry(WIDTH))))
    assert 0.6 < units.cosine < 0.98
    assert units_tail(units.z, units.controls) < 1e-6


@pytest.mark.parametrize("seed", range(1, 5))
def test_strangers_do_not_match(opened, seed):
    units = match_units(*opened(BASE, decoder(seed, depth=DEPTH + 1)))
    assert abs(units.cosine) < 0.1
    assert abs(units.tokens) < 0.3
    assert units.controls == DEPTH * (DEPTH + 1) - DEPTH
    assert units_tail(units.z, units.controls) > 1e-3


def test_storage_of_the_tables_does_not_matter(opened, tmp_path):
    other = moved(noisy(BASE, 0.3), isometry(WIDTH))
    a, b = opened(BASE, other)
    plain = match_units(a, b)
    flipped = {n: np.ascontiguousarray(w.T, np.float32) for n, w in other.items()}
    save_file(flipped, tmp_path / "flipped.safetensors")
    with open_checkpoint(tmp_path / "flipped.safetensors") as c:
        turned = match_units(a, c)
    figures = [(u.cosine, u.z, u.controls, u.tokens) for u in (plain, turned)]
    assert figures[1] == pytest.approx(figures[0], rel=1e-9)


def test_alone_or_as_part_of_a_comparison(opened):
    a, b = opened(BASE, moved(noisy(BASE, 0.3), isometry(WIDTH)))
    units = match_units(a, b)
    assert units == match_units(a, b, dissect(a), dissect(b))
    evidence = compare(a, b).evidence
    assert units.cosine == evidence.units
    assert (units.z, units.controls, units.tokens) == (evidence.units_z, evidence.controls, evidence.tokens)


def test_too_little_to_match(opened):
    assert match_units(*opened(BASE, decoder(0, depth=3))) is None


def test_no_token_table(opened):
    assert match_units(*opened(BASE, {n: w for n, w in BASE.items() if n != TABLE})) is None


def twin(a, b, tokens, units):
    """Held-out cosines of all pairs of blocks, unit by unit: [blocks of a, blocks of b]."""

    def rows(tensors):
        table = tensors[TABLE][tokens]
        table = table - table.mean(axis=0)
        table /= np.linalg.norm(table, axis=1, keepdims=True)
        u, s, v = np.linalg.svd(table, full_matrices=False)
        frame = u[:, s**2 > 1e-3 * s[0] ** 2] @ v[s**2 > 1e-3 * s[0] ** 2]
        blocks = []
        for i in range(DEPTH):
            matrices = [tensors[weight(i, part)] for part in PARTS]
            matrices[2] = matrices[2].T
            projected = [m @ frame.T for m in matrices]
            blocks.append([p - p.mean(axis=0) for p in projected])
        return blocks

    def cosine(x, y):
        return x @ y / np.linalg.norm(x) / np.linalg.norm(y)

    def without(x, direction):
        return x - (x @ direction) / (direction @ direction) * direction

    out = np.zeros((DEPTH, DEPTH))
    for i, left in enumerate(rows(a)):
        for j, right in enumerate(rows(b)):
            for unit in units:
                best = max(range(HIDDEN), key=lambda v: cosine(left[0][unit], right[0][v]))
                held = [
                    cosine(without(x[unit], left[0][unit]), without(y[best], right[0][best]))
                    for x, y in zip(left[1:], right[1:], strict=True)
                ]
                out[i, j] += np.mean(held) / len(units)
    return out


def test_equals_a_plain_computation(opened):
    other = noisy(BASE, 1.0)
    a, b = ({n: w.astype(np.float32).astype(float) for n, w in t.items()} for t in (BASE, other))
    low, high = VOCABULARY // 16, VOCABULARY // 2
    tokens = [low + i * (high - low) // 255 for i in range(256)]
    table = twin(a, b, tokens, [i * HIDDEN // 64 for i in range(64)])
    same = np.eye(DEPTH, dtype=bool)
    units = match_units(*opened(BASE, other))
    assert units.cosine == pytest.approx(table[same].mean(), rel=1e-6)
    error = table[~same].std(ddof=1) / np.sqrt(DEPTH)
    assert units.z == pytest.approx((table[same].mean() - table[~same].mean()) / error, rel=1e-6)


def test_deep_models_are_sampled(opened):
    deep = decoder(0, depth=2 * BLOCKS + 1)
    units = match_units(*opened(deep, moved(deep, isometry(WIDTH))))
    assert units.controls == BLOCKS * BLOCKS - BLOCKS
    assert units.cosine == pytest.approx(1.0, abs=1e-4)


@pytest.mark.parametrize(
    ("basis", "turn"),
    [
        (signed_permutation(), "permutation"),
        (isometry(WIDTH), "rotation"),
        (isometry(WIDTH + 16), None),
    ],
)
def test_kind_of_turn(opened, basis, turn):
    a, b = opened(BASE, moved(noisy(BASE, 0.1), basis))
    assert find_turn(a, b, dissect(a), dissect(b)) == turn
