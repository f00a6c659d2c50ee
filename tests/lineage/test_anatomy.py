from __future__ import annotations

import numpy as np
import pytest

from hilm.lineage.anatomy import dissect
from hilm.weights.checkpoint import open_checkpoint
from tests.lineage.family import TABLE, mixed, renamed
from tests.tiny import bert_like, write_model


def zeros(**shapes):
    return {name.replace("__", "."): np.zeros(shape, np.float32) for name, shape in shapes.items()}


def anatomy(folder, tensors, **how):
    with open_checkpoint(write_model(folder, tensors, **how)) as checkpoint:
        return dissect(checkpoint)


def test_bert_has_one_table_and_every_matrix(tmp_path):
    found = anatomy(tmp_path, bert_like(layers=2))
    assert found.width == 64
    assert found.tables == {TABLE}
    assert found.embedding.info.name == TABLE
    assert found.vocabulary == 1000
    assert len(found.matrices) == 2 + 2 * 6
    assert found.coverage == 1.0


def test_an_untied_head_is_a_table_but_not_the_embedding(tmp_path):
    model = mixed(layers=1) | {"lm_head.weight": np.ones((1000, 64), np.float32)}
    found = anatomy(tmp_path, model)
    assert found.tables == {"model.embed_tokens.weight", "lm_head.weight"}
    assert found.embedding.info.name == "model.embed_tokens.weight"


def test_two_tables_without_a_telling_name_leave_the_embedding_open(tmp_path):
    model = mixed(layers=2) | {"lm_head.weight": np.ones((1000, 64), np.float32)}
    found = anatomy(tmp_path, renamed(model, np.random.default_rng(0)))
    assert len(found.tables) == 2
    assert found.embedding is None
    assert found.vocabulary is None


def test_a_short_vocabulary_is_found_by_its_name(tmp_path):
    """A wide model with V < 4 d, its head beside it."""
    shapes = {
        "model__embed_tokens__weight": (200, 64),
        "lm_head__weight": (200, 64),
        "wpe__weight": (220, 64),
    }
    found = anatomy(tmp_path, zeros(**shapes, a=(64, 64), b=(64, 64)))
    assert found.tables == {"model.embed_tokens.weight", "lm_head.weight"}
    assert found.embedding.info.name == "model.embed_tokens.weight"


def test_four_copies_of_a_t5_table_are_one_embedding(tmp_path):
    names = (
        "shared__weight",
        "encoder__embed_tokens__weight",
        "decoder__embed_tokens__weight",
        "lm_head__weight",
    )
    blocks = {f"encoder__block__{n}__layer__0__SelfAttention__q__weight": (64, 64) for n in range(6)}
    found = anatomy(tmp_path, zeros(**dict.fromkeys(names, (1000, 64)), **blocks))
    assert len(found.tables) == 4
    assert found.embedding.info.name == "decoder.embed_tokens.weight"


def test_a_table_stored_by_columns_is_found(tmp_path):
    model = mixed(layers=2)
    model["model.embed_tokens.weight"] = np.ascontiguousarray(model["model.embed_tokens.weight"].T)
    found = anatomy(tmp_path, model)
    assert (found.embedding.rows, found.embedding.columns) == (64, 1000)
    assert found.vocabulary == 1000


def test_stacked_experts_are_several_matrices_and_kernels_one(tmp_path):
    found = anatomy(tmp_path, zeros(experts=(3, 20, 40), kernel=(64, 20, 32), conv=(24, 3, 4, 4)))
    assert [(m.info.name, m.index, m.rows, m.columns) for m in found.matrices] == [
        *(("experts", i, 20, 40) for i in range(3)),
        ("kernel", 0, 64, 640),
        ("conv", 0, 24, 48),
    ]
    assert [(m.start, m.stop) for m in found.matrices][:3] == [(0, 800), (800, 1600), (1600, 2400)]


def test_the_width_is_the_side_of_most_matrices_and_the_larger_of_two(tmp_path):
    assert anatomy(tmp_path / "a", zeros(a=(48, 16), b=(48, 20), c=(16, 20), d=(20, 48))).width == 48
    assert anatomy(tmp_path / "b", zeros(a=(48, 16))).width == 48


@pytest.mark.parametrize("name", ["h.0.attn.masked_bias", "x.causal_mask", "rope.cos_cached", "freqs_cis"])
def test_buffers_are_no_matrices(tmp_path, name):
    assert anatomy(tmp_path, {name: np.zeros((64, 64), np.float32)}).matrices == ()


def test_small_and_endless_matrices_are_left_out(tmp_path):
    found = anatomy(tmp_path, zeros(a=(15, 64), b=(64, 15), c=(64,), d=(), e=(16, (1 << 18) + 1), f=(0, 64)))
    assert found.matrices == ()
    assert found.width is None
    assert found.embedding is None


def test_packed_weights_lower_the_coverage_and_indices_do_not(tmp_path):
    half = {"a": np.zeros((32, 32), np.float32)}
    assert anatomy(tmp_path / "f4", half | {"b": ("F4", (32, 32), bytes(512))}).coverage == 0.5
    assert anatomy(tmp_path / "i8", half | {"b": np.zeros((32, 32), np.int8)}).coverage == 0.5
    assert anatomy(tmp_path / "i32", half | {"b.qweight": np.zeros((16, 16), np.int32)}).coverage == 0.5
    indices = {"b": np.zeros((32, 32), np.int64), "position_ids": np.zeros((1, 512), np.int32)}
    assert anatomy(tmp_path / "i64", half | indices).coverage == 1.0


def test_only_packed_weights_are_no_coverage_at_all(tmp_path):
    assert anatomy(tmp_path, {"b": np.zeros((32, 32), np.uint8)}).coverage == 0.0


def test_names_do_not_change_what_shapes_tell(tmp_path):
    found = anatomy(tmp_path, renamed(mixed(), np.random.default_rng(1)))
    assert found.width == 64
    assert found.vocabulary == 1000
