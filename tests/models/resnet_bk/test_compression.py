"""Rounded training, pruning and distillation: what is promised to stay equal does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.nn import functional

from hilm.models.resnet_bk import ResNetBKForCausalLM, ResNetBKForMaskedLM
from hilm.models.resnet_bk.compression import (
    convert_qat,
    distillation_loss,
    prepare_qat,
    prune_experts,
    remove_experts,
)
from tests.models.resnet_bk.tiny import logits, model, tokens


@pytest.mark.parametrize(("bits", "least"), [(8, 1e-4), (2, 0.1)])
def test_a_converted_model_computes_what_the_prepared_one_did(bits, least, tmp_path):
    made, ids = model(tie_word_embeddings=True), tokens(2, 12)
    before, size = logits(made, ids), made.num_parameters()
    prepare_qat(made, bits)
    rounded = logits(made, ids)
    assert (rounded - before).abs().max() > least
    convert_qat(made)
    assert torch.equal(logits(made, ids), rounded)
    assert (type(made), made.num_parameters()) == (ResNetBKForCausalLM, size)
    made.save_pretrained(tmp_path)
    assert torch.equal(logits(ResNetBKForCausalLM.from_pretrained(tmp_path), ids), rounded)


def test_converted_rows_are_integers_times_one_step():
    made = model()
    potential = made.model.layers[0].mixer.v_proj.weight.clone()
    prepare_qat(made, 4)
    convert_qat(made)
    layer = made.model.layers[0]
    for weight in (layer.moe.experts.up_proj, layer.mixer.y_proj.weight, made.lm_head.weight):
        levels = weight / weight.abs().amax(-1, keepdim=True) * 7
        torch.testing.assert_close(levels, levels.round())
    assert torch.equal(layer.mixer.v_proj.weight, potential)


def test_training_finds_weights_that_suffer_less_from_rounding():
    ids, losses = tokens(8, 16), {}  # to be learned by heart
    for aware in (False, True):
        made = model(scale=1.0, router_aux_loss_coef=0.0)
        if aware:
            prepare_qat(made, 2)
        optimizer = torch.optim.Adam(made.parameters(), 0.01)
        for _ in range(60):
            made.train()(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        if not aware:
            prepare_qat(made, 2)
        convert_qat(made.eval())
        losses[aware] = made(ids, labels=ids).loss.item()
    assert losses[True] < losses[False] - 0.2


def test_pruned_units_are_those_that_can_be_zeroed(tmp_path):
    made, ids = model(), tokens(2, 12)
    masked = copy.deepcopy(made)
    for layer in masked.model.layers:
        experts = layer.moe.experts
        use = experts.up_proj.norm(dim=2) * experts.down_proj.norm(dim=1)
        weak = use < use.median(-1, keepdim=True).values  # 15 of 32: the lower median stays
        experts.down_proj.data.masked_fill_(weak[:, None], 0.0)
    size = made.num_parameters()
    prune_experts(made, 15 / 32)
    assert made.config.d_ff == 17
    assert made.num_parameters() == size - 2 * 3 * 15 * 2 * 16
    torch.testing.assert_close(logits(made, ids), logits(masked, ids))
    made.save_pretrained(tmp_path)
    assert torch.equal(logits(ResNetBKForCausalLM.from_pretrained(tmp_path), ids), logits(made, ids))


def test_the_least_probable_expert_is_removed(tmp_path):
    made, ids = model(head=ResNetBKForMaskedLM, causal=False), tokens(2, 12)
    for layer in made.model.layers:
        layer.moe.router.proj.bias.data[1] = -100.0  # nobody asks it
    before = logits(made, ids)
    remove_experts(made, 1, tokens(4, 20))
    assert made.config.num_experts == 2
    torch.testing.assert_close(logits(made, ids), before)
    made.save_pretrained(tmp_path)
    assert torch.equal(logits(ResNetBKForMaskedLM.from_pretrained(tmp_path), ids), logits(made, ids))


def test_what_is_refused():
    made = model(top_k=2)
    for amount in (1.0, -0.1, 0.99):
        with pytest.raises(ValueError, match=f"amount is {amount}"):
            prune_experts(made, amount)
    for count in (2, -1):
        with pytest.raises(ValueError, match="leave top_k = 2"):
            remove_experts(made, count, tokens(1, 3))
    with pytest.raises(ValueError, match="none can be removed"):
        remove_experts(model(use_scattering_router=True), 1, tokens(1, 3))
    with pytest.raises(ValueError, match="bits is 9"):
        prepare_qat(made, 9)
    prepare_qat(made)
    with pytest.raises(ValueError, match="prepared already"):
        prepare_qat(made)


def test_distillation_is_the_published_formula():
    made, teacher, ids = model().train(), model(seed=1), tokens(2, 9)
    labels = ids.clone()
    labels[0, 5:] = -100
    student, taught = made(ids, labels=labels), logits(teacher, ids)
    expected, count = 0.0, 0
    for row in range(2):
        for i in range(8):
            if labels[row, i + 1] != -100:
                p = functional.softmax(taught[row, i] / 3, -1)
                q = functional.softmax(student.logits[row, i] / 3, -1)
                expected, count = expected + (p * (p / q).log()).sum(), count + 1
    got = distillation_loss(student, taught, labels, temperature=3.0, alpha=0.25)
    torch.testing.assert_close(got, 0.75 * student.loss + 0.25 * 9 * expected / count)
    accumulated = distillation_loss(student, taught, labels, 3.0, 1.0, torch.tensor(24))
    torch.testing.assert_close(accumulated, 9 * expected / 24)
    same = distillation_loss(student, student.logits, labels, alpha=1.0)
    torch.testing.assert_close(same, torch.tensor(0.0))
