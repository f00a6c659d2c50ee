from __future__ import annotations

import datasets
import numpy as np
import peft
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st

from hilm.training.ppo import PPOConfig, PPOTrainer, Rounds, advantages, losses, until_end
from tests.training.models import llama, rows_for, tokenizer


@given(st.integers(0, 10_000), st.integers(1, 4), st.integers(1, 9))
def test_advantages_are_the_double_loop(seed, rows, length):
    random = np.random.default_rng(seed)
    rewards, values = (random.standard_normal((rows, length)) for _ in range(2))
    mask = (np.arange(length) < random.integers(1, length + 1, (rows, 1))).astype(float)
    gamma, lam = 0.97, 0.9
    expected = np.zeros((rows, length))
    for b in range(rows):
        for t in range(length):
            for k in range(length - t):
                after = values[b, t + k + 1] * mask[b, t + k + 1] if t + k + 1 < length else 0.0
                delta = rewards[b, t + k] + gamma * after - values[b, t + k]
                expected[b, t] += (gamma * lam) ** k * delta * mask[b, t + k]
    expected *= mask
    tensors = [torch.tensor(a, dtype=torch.float32) for a in (rewards, values, mask)]
    found = advantages(*tensors, gamma, lam).numpy()
    assert np.abs(found - expected).max() <= 1e-5


def test_the_mask_ends_with_the_first_end():
    tokens = torch.tensor([[5, 2, 7, 2], [2, 2, 2, 2], [5, 6, 7, 8]])
    assert until_end(tokens, 2).tolist() == [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    assert until_end(tokens, -1).all()


@pytest.mark.parametrize(
    ("gain", "ratio", "expected"),
    [(1.0, 1.5, -1.2), (1.0, 0.5, -0.5), (-1.0, 1.5, 1.5), (-1.0, 0.5, 0.8), (1.0, 1.1, -1.1)],
)
def test_clipping_by_hand(gain, ratio, expected, tmp_path):
    one = torch.ones(1, 1)
    old = {"logs": 0 * one, "values": 0 * one, "advantages": gain * one, "returns": 0 * one, "mask": one}
    args = PPOConfig(output_dir=str(tmp_path), use_cpu=True, value_weight=0.0)
    loss, figures = losses((torch.log(ratio * one), 0 * one, 0 * one), old, args)
    assert float(loss) == pytest.approx(expected)
    assert float(figures["clip_fraction"]) == float(abs(ratio - 1) > 0.2)


def test_rounds_repeat_whole_batches():
    order = list(Rounds(10, 4, 3, seed=1))
    assert len(order) == len(Rounds(10, 4, 3, seed=1)) == 24
    assert order[:4] == order[4:8] == order[8:12]
    assert len(set(order[:4]) | set(order[12:16])) == 8


def trainer(tmp_path, *, adapter=False, **settings):
    transformers.set_seed(settings.pop("seed", 0))
    coder, model = tokenizer(), llama()
    coder.eos_token = None
    if adapter:
        model = peft.get_peft_model(
            model, peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj"])
        )
    args = PPOConfig(
        output_dir=str(tmp_path / "ppo"), use_cpu=True, report_to="none", disable_tqdm=True, logging_steps=1,
        save_strategy=settings.pop("save_strategy", "no"), per_device_train_batch_size=32,
        max_completion_length=8,
        dataloader_pin_memory=False, data_seed=0, lr_scheduler_type="constant", **settings,
    )  # fmt: skip
    rows = datasets.Dataset.from_list(rows_for("ppo", 64))

    def reward(prompts, completions):
        return [sum(character.isascii() for character in text) / 8 for text in completions]

    made = PPOTrainer(model=model, reward_funcs=reward, args=args, train_dataset=rows, processing_class=coder)
    made.remove_callback(transformers.PrinterCallback)
    return made


@pytest.mark.parametrize("adapter", [False, True])
def test_it_starts_where_it_is(tmp_path, adapter):
    made = trainer(tmp_path, adapter=adapter, max_steps=1, learning_rate=3e-3)
    made.train()
    first = made.state.log_history[0]
    assert first["kl"] == pytest.approx(0, abs=1e-5)
    assert first["ratio"] == pytest.approx(1, abs=1e-6)
    assert first["clip_fraction"] == 0


def test_the_reference_is_the_model_without_its_adapter(tmp_path):
    made = trainer(tmp_path, adapter=True, max_steps=4, learning_rate=3e-2)
    ids, mask = torch.randint(3, 259, (2, 9)), torch.ones(2, 9, dtype=torch.long)
    before = made._reference_logs(ids, mask, 4)
    made.train()
    assert torch.equal(made._reference_logs(ids, mask, 4), before)
    assert not torch.equal(made.model(ids, mask, 4)[0], before)


def test_the_reward_rises(tmp_path):
    made = trainer(tmp_path, max_steps=60, learning_rate=3e-3)
    made.train()
    rewards = [e["reward"] for e in made.state.log_history if "reward" in e]
    first, last = np.array(rewards[:3]), np.array(rewards[-3:])
    rise = last.mean() - first.mean()
    error = 0.18 / np.sqrt(3 * 32) * np.sqrt(2)  # 8 bytes, each ASCII or not: sqrt(0.25 / 8)
    assert rise >= max(0.15, 3 * error), rewards


def test_resumed_it_is_the_same(tmp_path):
    whole = trainer(tmp_path, max_steps=8, learning_rate=3e-3, save_steps=3, save_strategy="steps")
    whole.train()
    assert (tmp_path / "ppo" / "checkpoint-4").is_dir(), "a rollout is not saved"
    again = trainer(tmp_path, max_steps=8, learning_rate=3e-3, seed=5)
    again.reference.load_state_dict(whole.reference.state_dict())
    again.train(resume_from_checkpoint=str(tmp_path / "ppo" / "checkpoint-4"))
    pairs = zip(whole.model.parameters(), again.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_a_policy_that_moved_too_far_waits(tmp_path):
    made = trainer(tmp_path, max_steps=4, learning_rate=3e-2, target_kl=1e-9)
    before = {n: p.clone() for n, p in made.model.named_parameters()}
    made.train()
    assert made.rollout["stopped"]
    losses_ = [e["loss"] for e in made.state.log_history if "loss" in e]
    assert losses_[-1] == 0
    assert any(not torch.equal(p, before[n]) for n, p in made.model.named_parameters())
