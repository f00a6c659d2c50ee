from __future__ import annotations

import time
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hilm.errors import UnknownLayerType
from hilm.weights.roles import ALIASES, KINDS, LAYER_TYPES, Role, classify, resolve_layer_types

# name, type, kind, block, expert
NAMES = """
# BERT
embeddings.word_embeddings.weight                        embedding     token      - -
embeddings.position_embeddings.weight                    embedding     position   - -
embeddings.token_type_embeddings.weight                  embedding     segment    - -
embeddings.position_ids                                  embedding     buffer     - -
embeddings.LayerNorm.weight                              normalization scale      - -
embeddings.LayerNorm.beta                                normalization bias       - -
encoder.layer.0.attention.self.query.weight              attention     q          0 -
encoder.layer.0.attention.self.key.bias                  attention     bias       0 -
encoder.layer.0.attention.self.distance_embedding.weight attention     unknown    0 -
encoder.layer.0.attention.output.dense.weight            attention     o          0 -
encoder.layer.0.attention.output.LayerNorm.weight        normalization scale      0 -
encoder.layer.0.intermediate.dense.weight                mlp           up         0 -
encoder.layer.0.output.dense.weight                      mlp           down       0 -
encoder.layer.11.output.dense.weight                     mlp           down       11 -
encoder.layer.0.output.LayerNorm.bias                    normalization bias       0 -
pooler.dense.weight                                      other         pool       - -
cls.predictions.transform.dense.weight                   output        projection - -
cls.predictions.transform.LayerNorm.weight               normalization scale      - -
cls.predictions.decoder.weight                           output        head       - -
cls.predictions.bias                                     output        bias       - -
cls.seq_relationship.weight                              output        head       - -
classifier.weight                                        output        head       - -
classifier.1.weight                                      output        head       - -
qa_outputs.weight                                        output        head       - -
bert.encoder.layer.3.crossattention.output.dense.weight  attention     o          3 -
distilbert.transformer.layer.2.attention.q_lin.weight    attention     q          2 -
distilbert.transformer.layer.2.ffn.lin1.weight           mlp           up         2 -
distilbert.transformer.layer.2.sa_layer_norm.weight      normalization scale      2 -
# GPT-2, GPT-NeoX, Falcon, BLOOM, Phi
transformer.wte.weight                                   embedding     token      - -
wpe.weight                                               embedding     position   - -
h.0.ln_1.weight                                          normalization scale      0 -
ln_f.bias                                                normalization bias       - -
transformer.h.11.attn.c_attn.weight                      attention     qkv        11 -
h.0.attn.c_proj.weight                                   attention     o          0 -
h.0.attn.bias                                            attention     buffer     0 -
h.0.attn.masked_bias                                     attention     buffer     0 -
h.0.mlp.c_fc.weight                                      mlp           up         0 -
h.0.mlp.c_proj.weight                                    mlp           down       0 -
lm_head.weight                                           output        head       - -
gpt_neox.embed_in.weight                                 embedding     token      - -
embed_out.weight                                         output        head       - -
gpt_neox.layers.4.attention.query_key_value.weight       attention     qkv        4 -
gpt_neox.layers.4.attention.rotary_emb.inv_freq          attention     buffer     4 -
gpt_neox.layers.4.mlp.dense_h_to_4h.weight               mlp           up         4 -
gpt_neox.layers.4.mlp.dense_4h_to_h.weight               mlp           down       4 -
transformer.h.0.self_attention.dense.weight              attention     o          0 -
transformer.h.0.ln_attn.weight                           normalization scale      0 -
transformer.word_embeddings_layernorm.weight             normalization scale      - -
model.layers.0.self_attn.dense.weight                    attention     o          0 -
model.layers.0.self_attn.qkv_proj.weight                 attention     qkv        0 -
model.layers.0.mlp.gate_up_proj.weight                   mlp           gate_up    0 -
model.final_layernorm.weight                             normalization scale      - -
transformer.blocks.0.attn.Wqkv.weight                    attention     qkv        0 -
# Llama, Mistral, Qwen, Gemma, DeepSeek
model.embed_tokens.weight                                embedding     token      - -
model.layers.0.self_attn.q_proj.weight                   attention     q          0 -
model.layers.0.self_attn.q_proj.bias                     attention     bias       0 -
model.layers.31.self_attn.k_proj.weight                  attention     k          31 -
model.layers.31.self_attn.v_proj.weight                  attention     v          31 -
model.layers.31.self_attn.o_proj.weight                  attention     o          31 -
model.layers.0.self_attn.q_norm.weight                   normalization scale      0 -
model.layers.0.post_attention_layernorm.weight           normalization scale      0 -
model.layers.0.pre_feedforward_layernorm.weight          normalization scale      0 -
model.layers.0.mlp.gate_proj.weight                      mlp           gate       0 -
model.layers.0.mlp.up_proj.weight                        mlp           up         0 -
model.layers.0.mlp.down_proj.weight                      mlp           down       0 -
model.norm.weight                                        normalization scale      - -
score.weight                                             output        head       - -
output.weight                                            output        head       - -
layers.0.attention.wo.weight                             attention     o          0 -
layers.0.feed_forward.w1.weight                          mlp           gate       0 -
model.layers.0.self_attn.kv_a_proj_with_mqa.weight       attention     kv         0 -
model.layers.0.self_attn.rotary_emb.inv_freq             attention     buffer     0 -
base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight attention q 0 -
base_model.model.model.layers.0.mlp.down_proj.lora_B.weight mlp        down       0 -
model.layers.0.self_attn.q_proj.scales                   attention     scale      0 -
model.layers.0.mlp.up_proj.weight.absmax                 mlp           scale      0 -
_orig_mod.module.model.layers.0.mlp.up_proj.weight       mlp           up         0 -
# T5
shared.weight                                            embedding     token      - -
encoder.block.0.layer.0.SelfAttention.q.weight           attention     q          0 -
encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight attention bias 0 -
decoder.block.0.layer.1.EncDecAttention.k.weight         attention     k          0 -
decoder.block.5.layer.1.EncDecAttention.k.weight         attention     k          5 -
decoder.block.0.layer.2.DenseReluDense.wo.weight         mlp           down       0 -
decoder.block.0.layer.2.DenseReluDense.wi_1.weight       mlp           up         0 -
encoder.block.0.layer.0.layer_norm.weight                normalization scale      0 -
encoder.final_layer_norm.weight                          normalization scale      - -
# ViT, CLIP, Swin, ConvNeXt, ResNet
vit.embeddings.cls_token                                 embedding     special    - -
vit.embeddings.mask_token                                embedding     special    - -
vit.embeddings.patch_embeddings.projection.weight        embedding     patch      - -
pos_embed                                                embedding     position   - -
patch_embed.proj.bias                                    embedding     bias       - -
blocks.0.attn.qkv.weight                                 attention     qkv        0 -
blocks.0.attn.proj.weight                                attention     o          0 -
blocks.0.norm1.weight                                    normalization scale      0 -
blocks.0.mlp.fc1.weight                                  mlp           up         0 -
blocks.0.mlp.fc2.weight                                  mlp           down       0 -
blocks.0.mlp_tokens.fc1.weight                           mlp           up         0 -
blocks.0.ls1.gamma                                       other         scale      0 -
head.weight                                              output        head       - -
heads.head.weight                                        output        head       - -
visual_projection.weight                                 other         projection - -
logit_scale                                              other         scale      - -
vision_model.pre_layrnorm.weight                         normalization scale      - -
text_model.embeddings.token_embedding.weight             embedding     token      - -
layers.0.blocks.1.attn.relative_position_bias_table      attention     bias       0 -
convnext.encoder.stages.0.layers.1.dwconv.weight         other         conv       0 -
convnext.encoder.stages.0.layers.1.pwconv1.weight        other         conv       0 -
convnext.encoder.stages.0.layers.1.layernorm.weight      normalization scale      0 -
convnext.encoder.stages.0.layers.1.layer_scale_parameter other         scale      0 -
convnext.layernorm.weight                                normalization scale      - -
layer1.0.conv1.weight                                    other         conv       0 -
layer1.0.bn2.running_mean                                normalization buffer     0 -
fc.weight                                                mlp           unknown    - -
# Whisper
model.encoder.conv1.weight                               other         conv       - -
decoder.embed_positions.weight                           embedding     position   - -
decoder.layers.0.encoder_attn.out_proj.weight            attention     o          0 -
decoder.layers.0.encoder_attn_layer_norm.weight          normalization scale      0 -
layers.0.fc2.weight                                      mlp           down       0 -
proj_out.weight                                          output        head       - -
# mixtures of experts
layers.0.block_sparse_moe.experts.3.w2.weight            mlp           down       0 3
model.layers.7.block_sparse_moe.gate.weight              mlp           router     7 -
model.layers.7.mlp.gate.weight                           mlp           router     7 -
model.layers.7.mlp.gate.e_score_correction_bias          mlp           bias       7 -
model.layers.7.mlp.experts.59.gate_proj.weight           mlp           gate       7 59
model.layers.7.mlp.shared_expert.up_proj.weight          mlp           up         7 -
model.layers.7.mlp.shared_expert_gate.weight             mlp           router     7 -
model.layers.7.mlp.experts.gate_up_proj_blocks           mlp           gate_up    7 -
model.layers.7.mlp.router.weight                         mlp           router     7 -
experts.12.w1.weight                                     mlp           gate       - 12
# Mamba, RWKV
backbone.embeddings.weight                               embedding     token      - -
backbone.layers.0.mixer.in_proj.weight                   other         ssm        0 -
backbone.layers.0.mixer.out_proj.weight                  other         ssm        0 -
backbone.layers.0.mixer.A_log                            other         ssm        0 -
backbone.layers.0.mixer.conv1d.weight                    other         ssm        0 -
backbone.layers.0.mixer.dt_bias                          other         ssm        0 -
backbone.layers.0.mixer.norm.weight                      normalization scale      0 -
backbone.layers.0.norm.weight                            normalization scale      0 -
backbone.norm_f.weight                                   normalization scale      - -
model.layers.0.mamba.out_proj.weight                     other         ssm        0 -
rwkv.blocks.0.attention.time_decay                       attention     unknown    0 -
rwkv.blocks.0.feed_forward.key.weight                    mlp           unknown    0 -
# ResNet-BK
token_embedding.weight                                   embedding     token      - -
position_embedding.weight                                embedding     position   - -
wte.weight                                               embedding     token      - -
blocks.0.layer_norm.weight                               normalization scale      0 -
layer_norm_final.weight                                  normalization scale      - -
norm_f.weight                                            normalization scale      - -
blocks.0.bk_layer.v_proj.weight                          other         ssm        0 -
blocks.0.bk.bk_scale                                     other         ssm        0 -
blocks.0.moe.w1                                          mlp           gate       0 -
blocks.0.bk_layer.ffn.experts.0.0.weight                 mlp           unknown    0 0
# diffusion
transformer_blocks.0.attn1.to_q.weight                   attention     q          0 -
transformer_blocks.0.attn1.to_out.0.weight               attention     o          0 -
transformer_blocks.0.ff.net.0.proj.weight                mlp           unknown    0 -
blocks.3.norm1.linear.weight                             other         modulation 3 -
unet/down_blocks.0.attentions.0.transformer_blocks.1.ff.net.2.weight mlp unknown 0 -
unet/down_blocks.0.attentions.0.proj_in.weight           other         unknown    0 -
unet/time_embedding.linear_1.weight                      embedding     time       - -
# GGUF
token_embd.weight                                        embedding     token      - -
token_embd_norm.weight                                   normalization scale      - -
blk.0.attn_q.weight                                      attention     q          0 -
blk.0.attn_output.weight                                 attention     o          0 -
blk.0.attn_norm.weight                                   normalization scale      0 -
blk.0.ffn_up.weight                                      mlp           up         0 -
blk.0.ffn_gate_inp.weight                                mlp           router     0 -
output_norm.weight                                       normalization scale      - -
# documented patterns alone
embed                                                    embedding     token      - -
token                                                    embedding     token      - -
position                                                 embedding     position   - -
wte                                                      embedding     token      - -
wpe                                                      embedding     position   - -
attention                                                attention     unknown    - -
attn                                                     attention     unknown    - -
self_attn                                                attention     unknown    - -
mlp                                                      mlp           unknown    - -
feed_forward                                             mlp           unknown    - -
ffn                                                      mlp           unknown    - -
fc                                                       mlp           unknown    - -
intermediate                                             mlp           up         - -
norm                                                     normalization scale      - -
layer_norm                                               normalization scale      - -
layernorm                                                normalization scale      - -
ln_f                                                     normalization scale      - -
ln_                                                      normalization scale      - -
output                                                   output        head       - -
classifier                                               output        head       - -
head                                                     output        head       - -
# whole words only, and the edges of the grammar
monkey.weight                                            other         unknown    - -
network.weight                                           other         unknown    - -
weight                                                   other         unknown    - -
blocks.12345678901234567890.mlp.fc1.weight               mlp           up         - -
""".strip().splitlines()
TABLE = [tuple(line.split()) for line in NAMES if not line.startswith("#")]


@pytest.mark.parametrize(("name", "layer_type", "kind", "block", "expert"), TABLE, ids=lambda text: text)
def test_table(name, layer_type, kind, block, expert):
    role = classify(name)
    assert (role.type, role.kind) == (layer_type, kind)
    assert role.block == (None if block == "-" else int(block))
    assert role.expert == (None if expert == "-" else int(expert))


def test_table_is_large_and_covers_every_type_and_rule():
    assert len(TABLE) >= 120
    assert {row[1] for row in TABLE} == set(LAYER_TYPES)
    assert {row[2] for row in TABLE} <= set(KINDS)
    assert {classify(row[0]).rule for row in TABLE} == set("NOEAMX")


def test_shape_decides_only_whether_shared_is_a_table():
    assert classify("shared.weight", (32128, 512)).type == "embedding"
    assert classify("shared.weight", (512,)).type == "other"
    assert classify("lm_head.weight", (512,)) == classify("lm_head.weight", (512, 8))


def test_role_is_immutable():
    with pytest.raises(AttributeError):
        classify("head").kind = "q"  # type: ignore[misc]


PLAIN = st.sampled_from(["model", "foo", "backbone", "Net", "tower_b", "x1", "monkeys", "language_model"])


@given(st.sampled_from(TABLE), PLAIN)
def test_an_unrelated_leading_component_never_changes_the_role(row, prefix):
    assert classify(f"{prefix}.{row[0]}") == classify(row[0])
    assert classify(f"{prefix}/{row[0]}") == classify(row[0])


@given(st.sampled_from(TABLE), st.integers(0, 999_999_999))
def test_the_number_of_a_block_never_changes_type_and_kind(row, number):
    name = ".".join(str(number) if part.isdigit() and len(part) < 9 else part for part in row[0].split("."))
    before, after = classify(row[0]), classify(name)
    assert (after.type, after.kind, after.rule) == (before.type, before.kind, before.rule)
    assert after.block == (None if before.block is None else number)
    assert after.expert == (None if before.expert is None else number)


@given(st.text(max_size=80) | st.text("aWnor_./019-", max_size=80))
def test_any_name_has_a_role(name):
    role = classify(name)
    assert isinstance(role, Role)
    assert role.type in LAYER_TYPES
    assert role.kind in KINDS
    assert classify(name) == role


def test_a_name_of_digits_only_is_harmless():
    assert classify("9" * 10_000 + ".weight").block is None


def test_speed_on_distinct_names():
    suffixes = (
        "self_attn.q_proj.weight",
        "mlp.experts.3.w2.weight",
        "input_layernorm.weight",
        "mlp.gate.weight",
    )
    names = [f"model.layers.{number}.{suffix}" for number in range(10_000) for suffix in suffixes]

    def rate():
        start = time.process_time()
        for name in names:
            classify(name)
        return len(names) / (time.process_time() - start)

    best = max(rate() for _ in range(5))
    assert best >= 200_000, f"{best:,.0f} names/s"


@pytest.mark.parametrize(
    ("names", "types"),
    [
        ([], set()),
        (["attention"], {"attention"}),
        (["Attention", "MLP"], {"attention", "mlp"}),
        (["attention,mlp", " norm "], {"attention", "mlp", "normalization"}),
        (["embeddings", "ffn", "head"], {"embedding", "mlp", "output"}),
        (["other,"], {"other"}),
    ],
)
def test_resolve(names, types):
    assert resolve_layer_types(names) == types


def test_every_type_and_alias_resolves_to_a_type():
    for name in (*LAYER_TYPES, *ALIASES):
        assert resolve_layer_types([name.upper()]) <= set(LAYER_TYPES)


@pytest.mark.parametrize(("typed", "nearest"), [("atention", "attention"), ("mpl", "mlp"), ("heads", "head")])
def test_unknown_type_names_the_nearest(typed, nearest):
    with pytest.raises(UnknownLayerType, match=typed) as caught:
        resolve_layer_types([typed])
    assert f"{nearest!r}" in caught.value.hint
    assert caught.value.exit_code == 2


SMALL = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}

# Class, configuration, and how many parameters of two blocks have which role, counted by hand
MODELS = {
    "BertForMaskedLM": (
        SMALL,
        (
            "embedding: token 1, position 1, segment 1; attention: q 2, k 2, v 2, o 2, bias 8; "
            "mlp: up 2, down 2, bias 4; normalization: scale 6, bias 6; output: projection 1, bias 2"
        ),
    ),
    "GPT2LMHeadModel": (
        {"vocab_size": 50, "n_embd": 16, "n_layer": 2, "n_head": 2, "bos_token_id": 0, "eos_token_id": 0},
        (
            "embedding: token 1, position 1; attention: qkv 2, o 2, bias 4; mlp: up 2, down 2, bias 4; "
            "normalization: scale 5, bias 5"
        ),
    ),
    "LlamaForCausalLM": (
        SMALL,
        (
            "embedding: token 1; attention: q 2, k 2, v 2, o 2; mlp: gate 2, up 2, down 2; "
            "normalization: scale 5; output: head 1"
        ),
    ),
    "T5ForConditionalGeneration": (  # decoder blocks attend twice; a table of distances in either stack
        {"vocab_size": 50, "d_model": 16, "num_layers": 2, "num_heads": 2, "d_ff": 32, "d_kv": 8},
        (
            "embedding: token 1; attention: q 6, k 6, v 6, o 6, bias 2; mlp: up 4, down 4; "
            "normalization: scale 12"
        ),
    ),
    "ViTForImageClassification": (
        SMALL | {"image_size": 32, "patch_size": 16},
        (
            "embedding: special 1, position 1, patch 1, bias 1; attention: q 2, k 2, v 2, o 2, bias 8; "
            "mlp: up 2, down 2, bias 4; normalization: scale 5, bias 5; output: head 1, bias 1"
        ),
    ),
    "WhisperForConditionalGeneration": (  # keys have no bias
        {"vocab_size": 50, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "pad_token_id": 0}
        | {f"{part}_attention_heads": 2 for part in ("encoder", "decoder")}
        | {f"{part}_ffn_dim": 32 for part in ("encoder", "decoder")},
        (
            "embedding: token 1, position 2; attention: q 6, k 6, v 6, o 6, bias 18; "
            "mlp: up 4, down 4, bias 8; normalization: scale 12, bias 12; other: conv 2, bias 2"
        ),
    ),
    "MixtralForCausalLM": (
        SMALL | {"num_key_value_heads": 2, "num_local_experts": 4},
        (
            "embedding: token 1; attention: q 2, k 2, v 2, o 2; mlp: router 2, gate_up 2, down 2; "
            "normalization: scale 5; output: head 1"
        ),
    ),
    "MambaForCausalLM": (  # A_log, D, conv1d, in_proj, x_proj, dt_proj, out_proj of either block
        {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 2},
        "embedding: token 1; normalization: scale 3; other: ssm 14, bias 4",
    ),
}


@pytest.mark.parametrize("family", MODELS)
def test_roles_of_the_parameters_that_transformers_names(family):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes, summary = MODELS[family]
    model_class = getattr(transformers, family)
    with torch.device("meta"):
        model = model_class(model_class.config_class(**sizes))
    found = Counter()
    for name, parameter in model.named_parameters():
        role = classify(name, tuple(parameter.shape))
        found[role.type, role.kind] += 1
        in_stack = any(part.isdigit() for part in name.split("."))
        assert (role.block is not None) == in_stack, name
    told = {
        (layer_type, kind): int(number)
        for group in summary.split("; ")
        for layer_type, listed in [group.split(": ")]
        for kind, number in (part.split() for part in listed.split(", "))
    }
    assert found == told
