"""A student learns what its teacher says, where the text says nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import TrainingArguments

from hilm.models.resnet_bk.distillation import DistillationTrainer
from tests.models.resnet_bk.tiny import logits, model, tokens

ROWS = [{"input_ids": row, "labels": row} for row in tokens(16, 12)]


def trainer(folder, teacher, alpha, **options):
    arguments = TrainingArguments(
        output_dir=str(folder), max_steps=12, learning_rate=1e-2, per_device_train_batch_size=8,
        use_cpu=True, disable_tqdm=True, seed=0, save_strategy="no", report_to="none", **options,
    )  # fmt: skip
    student = model(seed=3, scale=1.0, n_layers=1)
    return DistillationTrainer(student, arguments, train_dataset=ROWS, teacher=teacher, alpha=alpha)


def divergence(student, teacher):
    ids = torch.stack([row["input_ids"] for row in ROWS])
    taught, learned = (logits(made.eval(), ids).log_softmax(-1) for made in (teacher, student))
    return float((taught.exp() * (taught - learned)).sum(-1).mean())


def test_a_student_comes_close_to_its_teacher(tmp_path):
    teacher = model()
    before = [weight.clone() for weight in teacher.parameters()]
    distances = {}
    for alpha in (0.0, 0.9):
        taught = trainer(tmp_path, teacher, alpha, gradient_accumulation_steps=2)
        taught.train()
        distances[alpha] = divergence(taught.model, teacher)
    assert distances[0.9] < 0.8 * distances[0.0]
    assert all(map(torch.equal, before, teacher.parameters()))
    assert taught.evaluate(ROWS[:4])["eval_loss"] > 0


def test_vocabularies_must_agree(tmp_path):
    with pytest.raises(ValueError, match="41 and 43 tokens"):
        trainer(tmp_path, model(vocab_size=43), 0.5)
