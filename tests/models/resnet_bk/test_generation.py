"""Everything ``generate`` does, with the state and without it."""

from __future__ import annotations

import pytest
import torch
from transformers import TextStreamer

from hilm.models.resnet_bk import ResNetBKCache
from tests.models.resnet_bk.test_modeling_resnet_bk import left_padded
from tests.models.resnet_bk.tiny import SWITCHES, model, tokens

NEW = 12


def generate(made, ids, **options):
    torch.manual_seed(0)
    return made.generate(ids, max_new_tokens=NEW, eos_token_id=None, **options)


@pytest.mark.parametrize("switch", SWITCHES)
def test_the_state_changes_nothing(switch):
    made, ids = model(**SWITCHES[switch]), tokens(2, 9)
    kept = generate(made, ids, do_sample=False)
    assert kept.shape == (2, 9 + NEW)
    assert torch.equal(kept, generate(made, ids, do_sample=False, use_cache=False))


@pytest.mark.parametrize(
    "options",
    [
        {"num_beams": 3, "do_sample": False},
        {"num_beams": 2, "do_sample": True},
        {"do_sample": True, "num_return_sequences": 3, "temperature": 0.7, "top_k": 5},
    ],
    ids=["beam", "beam-sample", "sample"],
)
def test_beams_and_samples(options):
    made, ids = model(), tokens(2, 9)
    assert torch.equal(generate(made, ids, **options), generate(made, ids, **options, use_cache=False))


def test_sampling_is_not_limited_by_the_experts_top_k():
    made = model()
    assert made.generation_config.top_k is None
    assert len({tuple(row) for row in generate(made, tokens(1, 3).repeat(8, 1), do_sample=True).tolist()}) > 1


@pytest.mark.parametrize("switch", ["plain", "prime-bump", "positions", "birman-schwinger"])
def test_left_padding_is_inert(switch):
    made, ids = model(**SWITCHES[switch]), tokens(2, 9)
    padded, mask = left_padded(ids, 6)
    alone = generate(made, ids, do_sample=False)
    together = generate(made, padded, attention_mask=mask, do_sample=False)
    assert torch.equal(together[:, 6:], alone)


def test_generation_continues_from_a_returned_state():
    made, ids = model(use_prime_bump=True), tokens(2, 9)
    first = made.generate(
        ids, max_new_tokens=5, do_sample=False, eos_token_id=None, return_dict_in_generate=True
    )
    second = made.generate(
        first.sequences,
        past_key_values=first.past_key_values,
        max_new_tokens=NEW - 5,
        do_sample=False,
        eos_token_id=None,
    )
    assert torch.equal(second, generate(made, ids, do_sample=False))


def test_assisted_generation_and_prompt_lookup():
    made, draft, ids = model(), model(seed=3, n_layers=1), tokens(1, 9)
    plain = generate(made, ids, do_sample=False)
    assert torch.equal(generate(made, ids, do_sample=False, assistant_model=draft), plain)
    assert torch.equal(generate(made, ids, do_sample=False, prompt_lookup_num_tokens=3), plain)


def test_streaming():
    class Tokenizer:
        def decode(self, ids, **options):
            return " ".join(map(str, ids))

    class Written(TextStreamer):
        text = ""

        def on_finalized_text(self, text, stream_end=False):  # noqa: FBT002 - the library's signature
            self.text += text

    streamer = Written(Tokenizer())
    out = generate(model(), tokens(1, 4), do_sample=False, streamer=streamer)
    assert streamer.text.split() == [str(token) for token in out[0].tolist()]


def test_what_is_refused():
    made, ids = model(), tokens(2, 9)
    mask = torch.ones_like(ids)
    mask[0, -2:] = 0
    with pytest.raises(ValueError, match="pad on the left"):
        generate(made, ids, attention_mask=mask)
    with pytest.raises(ValueError, match="one cache"):
        generate(made, ids, cache_implementation="static")


def test_a_caller_brings_an_empty_state():
    made, ids = model(), tokens(2, 9)
    cache = ResNetBKCache(made.config)
    assert torch.equal(
        generate(made, ids, do_sample=False, past_key_values=cache), generate(made, ids, do_sample=False)
    )
    assert cache.get_seq_length() == 9 + NEW - 1


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 2}, {"use_cache": False}], ids=["greedy", "beam", "no-cache"]
)
def test_an_empty_prompt_begins_a_text(options):
    made, empty = model(), tokens(2, 0)
    begun = generate(made, torch.ones(2, 1, dtype=torch.long), do_sample=False, **options)
    assert torch.equal(generate(made, empty, do_sample=False, **options), begun)
    masked = generate(made, empty, attention_mask=torch.ones_like(empty), do_sample=False, **options)
    assert torch.equal(masked, begun)
