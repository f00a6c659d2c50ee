from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.store.architecture import Architecture, read_architecture

GPT2 = {
    "model_type": "gpt2",
    "n_embd": 768,
    "n_layer": 12,
    "n_head": 12,
    "n_inner": None,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
}
MISTRAL = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "intermediate_size": 14336,
    "vocab_size": 32000,
    "hidden_act": "silu",
}
T5 = {
    "d_model": 512,
    "d_ff": 2048,
    "num_layers": 6,
    "num_decoder_layers": 8,
    "num_heads": 8,
    "d_kv": 64,
    "vocab_size": 32128,
    "feed_forward_proj": "relu",
}
WHISPER = {
    "d_model": 384,
    "encoder_layers": 4,
    "decoder_layers": 4,
    "num_hidden_layers": 4,
    "vocab_size": 51865,
    "encoder_attention_heads": 6,
    "encoder_ffn_dim": 1536,
    "activation_function": "gelu",
}
DEEPSEEK = {
    "hidden_size": 7168,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "kv_lora_rank": 512,
    "num_key_value_heads": 128,
    "qk_rope_head_dim": 64,
    "moe_intermediate_size": 2048,
    "intermediate_size": 18432,
    "num_experts_per_tok": 8,
    "vocab_size": 129280,
}
BERT = {
    "model_type": "bert",
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "vocab_size": 30522,
    "use_cache": True,
}


@pytest.mark.parametrize(
    ("config", "sizes"),
    [
        (GPT2, Architecture(12, 768, 3072, 50257, "gelu_new", 2 * 12 * 768)),
        (MISTRAL, Architecture(32, 4096, 14336, 32000, "silu", 2 * 32 * 8 * 128)),
        (T5, Architecture(14, 512, 2048, 32128, "relu", 2 * 8 * 8 * 64)),
        (WHISPER, Architecture(8, 384, 1536, 51865, "gelu", 2 * 4 * 384)),
        (DEEPSEEK, Architecture(61, 7168, 8 * 2048, 129280, "", 61 * (512 + 64))),
        (BERT, Architecture(12, 768, 3072, 0, "", None)),
        (BERT | {"architectures": ["BertForMaskedLM"]}, Architecture(12, 768, 3072, 30522, "", None)),
        (BERT | {"is_decoder": True}, Architecture(12, 768, 3072, 30522, "", 2 * 12 * 768)),
        (
            MISTRAL | {"architectures": ["XForSequenceClassification"]},
            Architecture(32, 4096, 14336, 0, "silu", 2 * 32 * 8 * 128),
        ),
        (
            {"hidden_size": 4544, "num_hidden_layers": 32, "num_attention_heads": 71, "multi_query": True},
            Architecture(32, 4544, 4 * 4544, 0, "", 2 * 32 * 64),
        ),
        (
            {"model_type": "llava", "text_config": MISTRAL},
            Architecture(32, 4096, 14336, 32000, "silu", 65536),
        ),
        (
            {"hidden_size": 768, "num_hidden_layers": 24, "vocab_size": 50280},
            Architecture(24, 768, 3072, 50280, "", None),
        ),
    ],
    ids=[
        "gpt2",
        "mistral",
        "t5",
        "whisper",
        "deepseek",
        "bert",
        "bert-mlm",
        "bert-decoder",
        "classifier",
        "falcon",
        "nested",
        "mamba",
    ],
)
def test_every_family_states_its_sizes_in_its_own_words(config, sizes):
    assert read_architecture(config) == sizes


@pytest.mark.parametrize(
    "config",
    [None, {}, {"hidden_size": 8}, {"hidden_size": True, "n_layer": 2}, {"n_embd": -4, "n_layer": 1 << 40}],
)
def test_what_is_no_size_is_absent(config):
    assert read_architecture(config) is None


JUNK = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.lists(st.integers())
    | st.just({})
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys((*MISTRAL, *DEEPSEEK, *BERT, "text_config"), JUNK)))
def test_no_configuration_is_too_odd(config):
    sizes = read_architecture(config)
    assert sizes is None or sizes.layers > 0 < sizes.width
