"""Trainer, resuming, accumulation and adapters."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import Trainer, TrainingArguments

from tests.models.resnet_bk.tiny import logits, model, tokens

pytestmark = [
    pytest.mark.filterwarnings(
        "ignore:.*gradient_checkpointing.*is deprecated:FutureWarning"
    ),  # peft, Trainer
]
ROWS = [
    {"input_ids": row, "labels": row}
    for row in tokens(16, 1).repeat(1, 12).add(torch.arange(12)).remainder(38) + 3
]


def train(folder, steps=8, made=None, resume=None, **options):
    settings = {"learning_rate": 1e-2, "per_device_train_batch_size": 4, "lr_scheduler_type": "constant"}
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=steps, save_steps=4, logging_steps=1, report_to="none",
        use_cpu=True, disable_tqdm=True, seed=0, **settings | options,
    )  # fmt: skip
    trainer = Trainer(
        model=model(use_act=True, scale=1.0) if made is None else made, args=arguments, train_dataset=ROWS
    )
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def losses(trainer):
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_the_loss_falls_and_a_run_resumes_exactly(tmp_path):
    whole = train(tmp_path / "whole")
    assert losses(whole)[-1] < losses(whole)[0] - 0.3
    train(tmp_path / "parts", steps=4)
    resumed = train(tmp_path / "parts", resume=str(tmp_path / "parts" / "checkpoint-4"))
    for one, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_accumulation_equals_one_large_batch(tmp_path):
    made = {"router_aux_loss_coef": 0.0, "scale": 1.0}  # the balance is a product of two batch means
    large = train(tmp_path / "large", 2, model(**made), per_device_train_batch_size=8)
    small = train(
        tmp_path / "small", 2, model(**made), per_device_train_batch_size=2, gradient_accumulation_steps=4
    )
    for one, other in zip(large.model.parameters(), small.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


def test_autocast_checkpointing_and_evaluation_together(tmp_path):
    trainer = train(tmp_path, 6, bf16=True, gradient_checkpointing=True, gradient_accumulation_steps=2)
    assert losses(trainer)[-1] < losses(trainer)[0]
    metrics = trainer.evaluate(ROWS[:4])
    assert metrics["eval_loss"] < losses(trainer)[0]
    assert trainer.predict(ROWS[:4]).predictions[0].shape == (4, 12, 41)


def test_low_rank_adapters_reach_mixer_and_stacked_experts(tmp_path):
    made, ids = model(), tokens(2, 12)
    before = logits(made, ids)
    lora = LoraConfig(
        r=2,
        target_modules=["v_proj", "x_proj", "y_proj", "feature_proj"],
        target_parameters=["experts.up_proj", "experts.down_proj"],
    )
    adapted = get_peft_model(made, lora)
    torch.testing.assert_close(logits(adapted, ids), before)
    optimizer = torch.optim.Adam([weight for weight in adapted.parameters() if weight.requires_grad], 0.05)
    for _ in range(5):
        adapted.train()(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    tuned = logits(adapted.eval(), ids)
    assert (tuned - before).abs().max() > 0.1
    adapted.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(model(), tmp_path).eval()
    torch.testing.assert_close(logits(reloaded, ids), tuned)
    torch.testing.assert_close(logits(adapted.merge_and_unload(), ids), tuned, atol=1e-4, rtol=1e-4)
