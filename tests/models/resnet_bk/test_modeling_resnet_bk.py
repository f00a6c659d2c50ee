from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from hilm.models.resnet_bk import (
    ResNetBKCache,
    ResNetBKForCausalLM,
    ResNetBKForMaskedLM,
    ResNetBKForQuestionAnswering,
    ResNetBKForSequenceClassification,
    ResNetBKForTokenClassification,
    ResNetBKModel,
)
from tests.models.resnet_bk.tiny import SWITCHES, config, logits, model, tokens

HEADS = (
    ResNetBKModel,
    ResNetBKForCausalLM,
    ResNetBKForMaskedLM,
    ResNetBKForSequenceClassification,
    ResNetBKForTokenClassification,
    ResNetBKForQuestionAnswering,
)
each_switch = pytest.mark.parametrize("switch", SWITCHES)
each_head = pytest.mark.parametrize("head", HEADS)


def headed(head, **fields):
    return model(head=head, **{"causal": head is not ResNetBKForMaskedLM} | fields)


def answer(made, **inputs):
    """The first tensor of a model's output."""
    with torch.no_grad():
        return made(**inputs, return_dict=False)[0]


def left_padded(ids, pad):
    """Ids and a mask, with ``pad`` masked random tokens in front."""
    padded = torch.cat([tokens(len(ids), pad, seed=99), ids], 1)
    return padded, (torch.arange(padded.shape[1]) >= pad).long().expand(padded.shape)


# What makes it a language model: no token sees a later one.


@pytest.mark.parametrize("experts", ["eager", "batched_mm"])
@each_switch
def test_later_tokens_change_no_bit_of_earlier_logits(switch, experts):
    made = model(**SWITCHES[switch])
    made.set_experts_implementation(experts)
    for length, cut in ((9, 4), (40, 39), (130, 67)):
        one, other = tokens(2, length), tokens(2, length)
        other[:, cut:] = tokens(2, length - cut, seed=7)
        before, after = logits(made, one), logits(made, other)
        assert torch.equal(before[:, :cut], after[:, :cut])
        assert not torch.equal(before[:, cut:], after[:, cut:])


@each_switch
def test_gradients_reach_no_later_token_and_every_earlier_one(switch):
    made = model(**SWITCHES[switch])
    embeds = torch.randn(1, 40, 16, requires_grad=True)
    made(inputs_embeds=embeds).logits[0, 25].square().sum().backward()
    assert embeds.grad[0, 26:].count_nonzero() == 0
    assert (embeds.grad[0, :26].norm(dim=-1) > 0).all()


def test_tokens_still_mix_at_documented_lengths():
    made, ids = model(n_layers=1, num_experts=1), tokens(1, 2048)
    other = ids.clone()
    other[0, -20] = (other[0, -20] + 1) % 41
    assert (logits(made, ids) - logits(made, other))[0, -1].abs().max() > 1e-5


# Masks, lengths and states.


@each_switch
def test_masked_tokens_might_as_well_not_be_there(switch):
    made, ids = model(**SWITCHES[switch]), tokens(1, 60)
    mask = torch.rand(1, 60, generator=torch.Generator().manual_seed(3)) > 0.4
    short = logits(made, ids[mask][None])
    torch.testing.assert_close(
        logits(made, ids, attention_mask=mask.long())[mask][None], short, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("head", "causal"),
    [(head, True) for head in HEADS if head is not ResNetBKForMaskedLM]
    + [(head, False) for head in HEADS if head is not ResNetBKForCausalLM],
)
def test_masks_are_inert_for_every_head(head, causal):
    made, ids = model(head=head, causal=causal, pad_token_id=0), tokens(2, 20)
    padded, mask = left_padded(ids, 5)
    given = answer(made, input_ids=padded, attention_mask=mask)
    given = given if head is ResNetBKForSequenceClassification else given[:, 5:]
    torch.testing.assert_close(given, answer(made, input_ids=ids), atol=1e-5, rtol=1e-5)


def test_encoders_see_both_sides():
    made, ids = model(causal=False), tokens(1, 30)
    other = ids.clone()
    other[0, 20] = 3 + (other[0, 20] + 1) % 30
    change = (logits(made, ids) - logits(made, other)).abs().amax(-1)[0]
    assert change[10:].min() > 0


@each_switch
def test_a_text_in_pieces_is_the_text(switch):
    made, ids = model(**SWITCHES[switch]), tokens(2, 70)
    state, pieces = None, []
    for start, stop in ((0, 1), (1, 2), (2, 2), (2, 45), (45, 70)):
        with torch.no_grad():
            out = made(ids[:, start:stop], past_key_values=state, use_cache=True)
        state = out.past_key_values
        pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), logits(made, ids), atol=2e-5, rtol=2e-5)
    assert state.get_seq_length() == 70


@pytest.mark.parametrize("length", [0, 1, 2, 33])
@each_head
def test_any_length_is_accepted(head, length):
    made = headed(head)
    if length == 0 and head is ResNetBKForSequenceClassification:
        return  # there is no last token to classify by
    assert torch.isfinite(answer(made, input_ids=tokens(2, length))).all()


def test_batch_mates_do_not_matter():
    for switch in SWITCHES.values():
        made, ids = model(**switch), tokens(3, 20)
        torch.testing.assert_close(logits(made, ids)[:1], logits(made, ids[:1]), atol=1e-5, rtol=1e-5)


def test_gradients_are_finite_under_any_padding():
    for switch in SWITCHES.values():
        made, ids = model(**switch).train(), tokens(3, 40)
        mask = torch.ones_like(ids)
        mask[0], mask[1, :20], mask[2, 15:] = 0, 0, 0
        made(ids, attention_mask=mask, labels=ids.where(mask.bool(), -100)).loss.backward()
        assert all(torch.isfinite(p.grad).all() for p in made.parameters() if p.grad is not None)


# Switches: none is dead.

CHANGES = {
    "n_layers": ({}, {"n_layers": 3}),
    "num_experts": ({}, {"num_experts": 2}),
    "top_k": ({}, {"top_k": 2}),
    "right_closure": ({}, {"right_closure": "dirichlet"}),
    "use_birman_schwinger": ({}, {"use_birman_schwinger": True}),
    "epsilon": ({"use_birman_schwinger": True}, {"epsilon": 0.0}),
    "epsilon of the bump": ({"use_prime_bump": True}, {"epsilon": 0.0}),
    "use_mourre": ({"use_birman_schwinger": True}, {"use_mourre": False}),
    "use_lap": ({"use_birman_schwinger": True}, {"use_lap": False}),
    "schatten_threshold": ({"use_birman_schwinger": True}, {"schatten_threshold": 1.0}),
    "scattering_scale": ({"use_scattering_router": True}, {"scattering_scale": 1.0}),
    "prime_bump_scale": ({"use_prime_bump": True}, {"prime_bump_scale": 0.5}),
    "k_max": ({"use_prime_bump": True, "prime_bump_scale": 0.5}, {"k_max": 1}),
    "act_halt_threshold": ({"use_act": True}, {"act_halt_threshold": 0.7}),
    "v_max": ({}, {"v_max": 1.0}),
    "eta_min": ({}, {"eta_min": 0.015}),
    "core_dtype": ({}, {"core_dtype": "float64"}),
    "layer_norm_eps": ({}, {"layer_norm_eps": 1e-2}),
}


@pytest.mark.parametrize("field", CHANGES)
def test_every_field_changes_the_logits_of_the_same_weights(field):
    base, change = CHANGES[field]
    made, other, ids = model(**base), model(**base | change), tokens(1, 40)
    weights = (
        {
            name: value
            for name, value in made.state_dict().items()
            if value.shape == other.state_dict()[name].shape
        }
        if field != "n_layers"
        else made.state_dict()
    )
    other.load_state_dict(weights, strict=False)
    assert not torch.equal(logits(made, ids), logits(other, ids))


@pytest.mark.parametrize(
    "field", ["use_semiseparable", "low_rank", "use_scattering_router", "use_prime_bump", "use_act"]
)
def test_switches_that_add_weights_use_them(field):
    fields = {field: 2 if field == "low_rank" else field != "use_semiseparable"}
    made = model(**fields).train()
    ids = tokens(2, 40)
    made(ids, labels=ids).loss.backward()
    assert not [
        name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.any()
    ]
    assert not torch.equal(logits(made.eval(), ids), logits(model(), ids))


def test_the_router_learns_even_when_it_chooses_one():
    made, ids = model(router_aux_loss_coef=0.0).train(), tokens(2, 20)
    made(ids, labels=ids).loss.backward()
    assert made.model.layers[0].moe.router.proj.weight.grad.any()


def test_losses_of_balance_and_depth():
    ids = tokens(2, 20)
    plain = model(use_act=True, router_aux_loss_coef=0.0).train()(ids, labels=ids)
    deep = model(use_act=True, router_aux_loss_coef=0.0, act_loss_coef=0.5).train()(ids, labels=ids)
    torch.testing.assert_close(deep.loss - plain.loss, 0.5 * deep.mean_depth)
    balanced = model(use_act=True, router_aux_loss_coef=0.5).train()(ids, labels=ids)
    torch.testing.assert_close(balanced.loss - plain.loss, 0.5 * balanced.aux_loss)
    assert 1 <= deep.mean_depth <= 2


def test_the_scattering_router_uses_many_experts():
    made = model(use_scattering_router=True, num_experts=8, d_model=64, bk_channels=8)
    with torch.no_grad():
        out = made(tokens(4, 64), output_router_logits=True)
    assert len(out.router_logits) == 2
    assert all(len(layer.argmax(-1).unique()) >= 6 for layer in out.router_logits)


def test_halted_tokens_cost_no_experts():
    made, seen = model(use_act=True), []
    nn.init.constant_(made.model.layers[0].halting.bias, 50.0)
    made.model.layers[1].moe.experts.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    halted = logits(made, tokens(1, 20))
    assert (seen[0] == made.config.num_experts).all()
    made.set_experts_implementation("batched_mm")
    torch.testing.assert_close(logits(made, tokens(1, 20)), halted)


# A citizen of transformers.


@each_head
def test_save_and_load(head, tmp_path):
    made = headed(head)
    made.save_pretrained(tmp_path)
    loaded = head.from_pretrained(tmp_path)
    ids = tokens(2, 12)
    assert torch.equal(answer(loaded, input_ids=ids), answer(made, input_ids=ids))
    assert AutoConfig.from_pretrained(tmp_path).to_dict() == loaded.config.to_dict()


def test_auto_classes(tmp_path):
    model().save_pretrained(tmp_path)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is ResNetBKForCausalLM
    assert type(AutoModel.from_pretrained(tmp_path)) is ResNetBKModel
    assert type(AutoModelForSequenceClassification.from_config(config())) is ResNetBKForSequenceClassification
    assert type(AutoModelForMaskedLM.from_config(config(causal=False))) is ResNetBKForMaskedLM


def test_heads_refuse_the_other_direction():
    with pytest.raises(ValueError, match="needs True"):
        ResNetBKForCausalLM(config(causal=False))
    with pytest.raises(ValueError, match="causal=False"):
        ResNetBKForMaskedLM(config())


@each_head
def test_every_weight_is_initialised_and_gets_a_gradient(head):
    made = headed(head, top_k=3).train()
    assert all(torch.isfinite(weight).all() for weight in made.parameters())
    made(input_ids=tokens(2, 40), return_dict=False)[0].square().sum().backward()
    idle = [name for name, weight in made.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle


def test_loading_a_partial_checkpoint_keeps_what_is_there(tmp_path):
    made = model()
    weights = made.state_dict()
    name = "model.layers.0.mixer.energy"
    weights["model.layers.0.mixer.b_raw"].fill_(0.7)
    del weights[name]
    made.save_pretrained(tmp_path, state_dict=weights)
    loaded = ResNetBKForCausalLM.from_pretrained(tmp_path)
    mixer = loaded.model.layers[0].mixer
    torch.testing.assert_close(mixer.energy.data, torch.linspace(-1, 1, 4))
    assert (mixer.b_raw == 0.7).all()


@pytest.mark.parametrize("tied", [False, True])
def test_embeddings_are_tied_or_not_and_resize(tied, tmp_path):
    made = model(tie_word_embeddings=tied)
    assert (made.lm_head.weight is made.model.embed_tokens.weight) == tied
    before = logits(made, tokens(1, 8))
    made.resize_token_embeddings(50)
    assert made.config.vocab_size == 50
    after = logits(made, tokens(1, 8))
    torch.testing.assert_close(after[..., :41], before)
    made.save_pretrained(tmp_path)
    assert torch.equal(logits(ResNetBKForCausalLM.from_pretrained(tmp_path), tokens(1, 8)), after)


@each_head
def test_outputs_as_tuples_and_hidden_states(head):
    made, ids = headed(head), tokens(2, 9)
    with torch.no_grad():
        out = made(input_ids=ids, output_hidden_states=True)
        flat = made(input_ids=ids, output_hidden_states=True, return_dict=False)
    assert torch.equal(flat[0], out[0])
    assert [tuple(state.shape) for state in out.hidden_states] == [(2, 9, 16)] * 3


def test_embeddings_instead_of_ids():
    made, ids = model(), tokens(2, 9)
    with torch.no_grad():
        given = made(inputs_embeds=made.get_input_embeddings()(ids)).logits
    assert torch.equal(given, logits(made, ids))


def test_logits_to_keep():
    made, ids = model(), tokens(2, 9)
    torch.testing.assert_close(logits(made, ids, logits_to_keep=2), logits(made, ids)[:, -2:])
    torch.testing.assert_close(
        logits(made, ids, logits_to_keep=torch.tensor([0, 4])), logits(made, ids)[:, [0, 4]]
    )


def targets(head, ids):
    """Labels of the kind a head is trained on."""
    if head is ResNetBKForQuestionAnswering:
        return {"start_positions": torch.tensor([1, 2]), "end_positions": torch.tensor([3, 3])}
    if head is ResNetBKForSequenceClassification:
        return {"labels": torch.tensor([0, 1])}
    return {"labels": ids % 2 if head is ResNetBKForTokenClassification else ids}


@pytest.mark.parametrize("head", HEADS[1:])
def test_every_head_trains_and_is_copied(head):
    made, ids = headed(head, use_act=True, use_scattering_router=True, scale=1.0).train(), tokens(2, 9)
    optimizer, losses = torch.optim.AdamW(made.parameters(), 1e-2), []
    for _ in range(8):
        losses.append(made(ids, **targets(head, ids)).loss)
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < losses[0] - 0.1
    copied = copy.deepcopy(made).eval()
    assert torch.equal(answer(copied, input_ids=ids), answer(made.eval(), input_ids=ids))


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("head", HEADS[1:])
def test_gradient_checkpointing_changes_no_gradient(head, reentrant):
    grads, ids = [], tokens(2, 40)
    for checkpointing in (False, True):
        made = headed(head, use_act=True).train()
        if checkpointing:
            made.activation_checkpointing_enable({"use_reentrant": reentrant})
            made.enable_input_require_grads()
        torch.manual_seed(0)  # a head may have dropout of its own
        made(ids, **targets(head, ids)).loss.backward()
        grads.append([weight.grad for weight in made.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed, atol=0, rtol=0)


def test_loss_counts_the_items_it_is_told():
    made, ids = model(router_aux_loss_coef=0.0).train(), tokens(2, 9)
    loss = made(ids, labels=ids).loss
    torch.testing.assert_close(made(ids, labels=ids, num_items_in_batch=32).loss, loss * 16 / 32)
    assert not torch.equal(made(ids, labels=ids.where(ids > 20, -100)).loss, loss)


def test_the_core_stays_in_its_precision(tmp_path):
    made, ids = model(), tokens(1, 40)
    made.save_pretrained(tmp_path)
    half = ResNetBKForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    mixer = half.model.layers[0].mixer
    assert {mixer.energy.dtype, mixer.eta_raw.dtype, mixer.b_raw.dtype} == {torch.float32}
    assert mixer.v_proj.weight.dtype == torch.bfloat16
    cache = half(ids, use_cache=True).past_key_values
    assert [values.dtype for values in cache.layers[0].state] == [torch.float64, torch.float32]
    assert torch.isfinite(logits(half, ids)).all()
    with torch.autocast("cpu", torch.bfloat16):
        out = made(ids, labels=ids, use_cache=True)
        out.loss.backward()
    state = out.past_key_values.layers[0].state
    assert [values.dtype for values in state] == [torch.float64, torch.float32]
    torch.testing.assert_close(out.logits.float(), logits(made, ids), atol=0.15, rtol=0.1)


def test_extreme_potentials_stay_finite():
    for switch in SWITCHES.values():
        made = model(scale=1e4, v_max=1000.0, **switch).train()
        out = made(tokens(2, 200), labels=tokens(2, 200))
        out.loss.backward()
        assert torch.isfinite(out.logits).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # inside the compiler
def test_compiled_is_eager():
    made, ids = model(use_act=True).train(), tokens(2, 50)
    compiled = torch.compile(made, fullgraph=True)
    out, expected = compiled(ids, labels=ids, use_cache=False), made(ids, labels=ids)
    torch.testing.assert_close(out.logits, expected.logits, atol=1e-5, rtol=1e-5)
    grads = [torch.autograd.grad(loss, made.lm_head.weight)[0] for loss in (out.loss, expected.loss)]
    torch.testing.assert_close(*grads, atol=1e-5, rtol=1e-5)


def test_mourre_constants_of_every_operator():
    assert model().model.mourre_constants().shape == (2, 4)
    assert (model().model.mourre_constants() >= 3 - 1e-6).all()


# Bad input.


def test_what_is_wrong_is_said():
    made, ids = model(), tokens(2, 5)
    for wrong in (41, -100):
        with pytest.raises(ValueError, match=rf"{wrong}.* 41 embeddings"):
            made(torch.tensor([[5, wrong]]))
    with pytest.raises(ValueError, match=r"\(2, 4\); it must be \(2, 5\)"):
        made(ids, attention_mask=torch.ones(2, 4))
    cache = ResNetBKCache(made.config)
    made(ids[:, :3], past_key_values=cache)
    with pytest.raises(ValueError, match=r"must be \(2, 8\): batch, 3 tokens in the cache \+ 5 new"):
        made(ids, attention_mask=torch.ones(2, 5), past_key_values=cache)
    with pytest.raises(ValueError, match=r"\(5,\); it must be \(batch, tokens\)"):
        made(ids[0])
    with pytest.raises(ValueError, match="exactly one"):
        made()
