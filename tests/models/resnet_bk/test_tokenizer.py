"""A tokenizer of one's own, and the model that goes with it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoTokenizer

from hilm.models.resnet_bk import create_resnet_bk_for_hf
from hilm.models.resnet_bk.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["the left Green's function, "] * 20, vocab_size=270)


@given(st.text())
def test_every_text_comes_back(text):
    assert TOKENIZER.decode(TOKENIZER(text).input_ids, skip_special_tokens=False) == text


def test_it_learns_pairs_and_has_the_special_tokens_of_the_model():
    assert len(TOKENIZER) == 270
    assert len(TOKENIZER("the function").input_ids) <= len("the function") / 2
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)
    batch = TOKENIZER(["the left", "x"], padding=True, return_tensors="pt")
    assert batch.input_ids[1, 0] == 0
    made = create_resnet_bk_for_hf(tokenizer=TOKENIZER, n_layers=1)
    assert made.config.vocab_size == 270
    assert made.generate(**batch, max_new_tokens=2).shape[0] == 2


def test_it_is_saved_beside_a_model(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded("the left ☃").input_ids == TOKENIZER("the left ☃").input_ids
    assert (loaded.padding_side, loaded.pad_token) == ("left", "<pad>")


def test_bytes_need_room():
    with pytest.raises(ValueError, match="vocab_size is 258"):
        train_tokenizer(["text"], vocab_size=258)


def test_a_larger_vocabulary_than_the_models_is_an_error_that_names_both():
    made = create_resnet_bk_for_hf("1M", vocab_size=260, n_layers=1)
    with pytest.raises(ValueError, match=r"to 269, but the model has 260 embeddings"):
        made(TOKENIZER("the function", return_tensors="pt").input_ids.clamp_min(269))
