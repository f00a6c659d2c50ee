"""Proximal policy optimisation of a language model: TRL no longer has it.

Completions are sampled from the policy π, scored, and learned from for ``epochs`` passes of ``minibatches``
updates each. π₀ is the model as it was: the adapter switched off, or a frozen copy. With m the mask of the
completion up to and including its first end token:

    r_t = -β (log π_old - log π₀)_t + R at the last token
    δ_t = r_t + g V_{t+1} m_{t+1} - V_t          A_t = Σ_k (gλ)^k δ_{t+k}          G = A + V
    q = exp(log π - log π_old)
    loss = -mean min(q A, clip(q, 1 ± ε) A) + c_v/2 mean max((V - G)², (clip(V, V_old ± ε) - G)²) - c_e mean H

A is whitened; all means are over unmasked tokens. Schulman et al., 2017, arXiv 1707.06347; advantages: 2016,
arXiv 1506.02438.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments

if TYPE_CHECKING:
    from collections.abc import Iterator

    from hilm.training.rewards import Reward

STATE = "trainable.safetensors"
"""File of a checkpoint: whatever is trained, the value head too."""


@dataclass
class PPOConfig(TrainingArguments):
    """Settings beside those of the Trainer, of which one step is one update on one minibatch.

    Attributes:
        beta: Price of leaving π₀.
        gamma: The discount g.
        lam: λ, decay of the advantage's horizon.
        cliprange: ε, for ratios and values.
        value_weight: c_v.
        entropy_weight: c_e.
        epochs: Passes over every rollout.
        minibatches: Updates of each pass.
        target_kl: Mean (q - 1) - log q beyond which the rest of a rollout is not learned from.
        max_completion_length: Longest completion, in tokens.
        missing_eos_penalty: What a completion without end costs.
    """

    beta: float = 0.02
    gamma: float = 1.0
    lam: float = 0.95
    cliprange: float = 0.2
    value_weight: float = 0.1
    entropy_weight: float = 0.0
    epochs: int = 2
    minibatches: int = 2
    target_kl: float = 0.1
    max_completion_length: int = 64
    missing_eos_penalty: float = 0.0

    @property
    def reuse(self) -> int:
        """Updates that one rollout serves."""
        return self.epochs * self.minibatches


class PolicyAndValue(nn.Module):
    """A language model and, on its last hidden state, a linear estimate of the reward to come, zero at first.

    Args:
        policy: The language model, perhaps with an adapter.
    """

    def __init__(self, policy: Any) -> None:  # noqa: ANN401 - PreTrainedModel or PeftModel
        super().__init__()
        self.policy = policy
        text = policy.config.get_text_config()
        self.value = nn.Linear(text.hidden_size, 1, device=policy.device)
        nn.init.zeros_(self.value.weight)
        nn.init.zeros_(self.value.bias)

    def forward(self, ids: Tensor, mask: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return log-probability, entropy and value of every token from ``start`` on, ``[B, T]`` float32."""
        output = run(self.policy, ids, mask, hidden=True)
        logs = output.logits[:, start - 1 : -1].float().log_softmax(-1)
        chosen = logs.gather(-1, ids[:, start:, None]).squeeze(-1)
        entropy = -(logs.exp() * logs).sum(-1)
        values = self.value(output.hidden_states[-1][:, start - 1 : -1].float()).squeeze(-1)
        return chosen, entropy, values


def run(policy: Any, ids: Tensor, mask: Tensor, *, hidden: bool = False) -> Any:  # noqa: ANN401 - transformers
    """Run a language model on texts padded on the left."""
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return policy(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        use_cache=False,
        output_hidden_states=hidden,
    )


def advantages(rewards: Tensor, values: Tensor, mask: Tensor, gamma: float, lam: float) -> Tensor:
    """Generalised advantages ``[B, T]``: A_t = δ_t + gλ A_{t+1}; nothing counts beyond the mask."""
    steps, following = [], torch.zeros_like(values[:, 0])
    after = torch.cat([values[:, 1:] * mask[:, 1:], torch.zeros_like(values[:, :1])], 1)
    deltas = (rewards + gamma * after - values) * mask
    for t in reversed(range(values.shape[1])):
        following = deltas[:, t] + gamma * lam * following
        steps.append(following)
    return torch.stack(steps[::-1], 1) * mask


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over unmasked tokens; 0 of none."""
    return (values * mask).sum() / mask.sum().clamp(min=1)


def until_end(tokens: Tensor, end: int) -> Tensor:
    """Mask of tokens up to and including the first end token, as floats."""
    ended = (tokens == end).int().cumsum(1) - (tokens == end).int()
    return (ended == 0).float()


def losses(
    new: tuple[Tensor, Tensor, Tensor], old: dict[str, Tensor], args: PPOConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    """The loss of one minibatch, and figures about it.

    Args:
        new: Log-probability, entropy and value now.
        old: ``logs``, ``values``, ``advantages``, ``returns`` and ``mask`` of the rollout.
        args: Settings.
    """
    logs, entropy, values = new
    mask, gain, returns = old["mask"], old["advantages"], old["returns"]
    change = (logs - old["logs"]) * mask
    ratio = change.exp()
    clipped = ratio.clamp(1 - args.cliprange, 1 + args.cliprange)
    policy = -masked_mean(torch.minimum(ratio * gain, clipped * gain), mask)
    near = old["values"] + (values - old["values"]).clamp(-args.cliprange, args.cliprange)
    value = masked_mean(torch.maximum((values - returns) ** 2, (near - returns) ** 2), mask) / 2
    spread = masked_mean(entropy, mask)
    figures = {
        "kl_step": masked_mean(ratio - 1 - change, mask),
        "clip_fraction": masked_mean(((ratio - 1).abs() > args.cliprange).float(), mask),
        "entropy": spread,
        "value_loss": value,
        "ratio": masked_mean(ratio, mask),
    }
    loss = policy + args.value_weight * value - args.entropy_weight * spread
    return loss, {name: figure.detach() for name, figure in figures.items()}


class Rounds(torch.utils.data.Sampler[int]):
    """Rows in random order, every batch as often as its rollout is learned from."""

    def __init__(self, rows: int, batch: int, reuse: int, seed: int) -> None:
        self.rows, self.batch, self.reuse, self.seed, self.epoch = rows, batch, reuse, seed, 0

    def __len__(self) -> int:
        return self.rows // self.batch * self.batch * self.reuse

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.rows, generator=generator).tolist()
        for start in range(0, len(order) - self.batch + 1, self.batch):
            for _ in range(self.reuse):
                yield from order[start : start + self.batch]


class PPOTrainer(Trainer):
    """A Trainer whose batches are rollouts of the policy; checkpoints, ranks and logs are the Trainer's.

    Args:
        model: The policy.
        reward_funcs: Scores completions.
        args: Settings.
        kwargs: As of the Trainer.
    """

    def __init__(self, model: Any, reward_funcs: Reward, args: PPOConfig, **kwargs: Any) -> None:  # noqa: ANN401
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        self.reward, self.adapted = reward_funcs, hasattr(model, "peft_config")
        args.save_steps = -(-int(args.save_steps) // args.reuse) * args.reuse  # a rollout is not saved
        args.remove_unused_columns = False
        super().__init__(PolicyAndValue(model), args, data_collator=list, **kwargs)
        self.reference = None if self.adapted else copy.deepcopy(model).requires_grad_(False).eval()
        if self.reference is not None:
            self.reference.to(args.device)
        self.rollout: dict[str, Any] = {}
        self.figures: dict[str, list[float]] = defaultdict(list)
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Any = None) -> Rounds:  # noqa: ANN401
        rows = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.per_device_train_batch_size * self.args.world_size
        return Rounds(
            len(rows), min(batch, len(rows)), self.args.reuse, self.args.data_seed or self.args.seed
        )

    def _reference_logs(self, ids: Tensor, mask: Tensor, start: int) -> Tensor:
        policy = self.accelerator.unwrap_model(self.model).policy
        with policy.disable_adapter() if self.adapted else nullcontext():
            logits = run(policy if self.adapted else self.reference, ids, mask).logits
        return logits[:, start - 1 : -1].float().log_softmax(-1).gather(-1, ids[:, start:, None]).squeeze(-1)

    @torch.no_grad()
    def roll_out(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Complete prompts, score the completions, and compute what learning from them takes.

        The model stays in training mode, which is without dropout: bitsandbytes repacks quantised weights on
        a CPU when they are used in evaluation mode, and gives no gradients from then on.
        """
        model, tokenizer = self.accelerator.unwrap_model(self.model), self.processing_class
        tokenizer.padding_side = "left"
        prompts = [row["prompt"] for row in rows]
        batch = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False)
        batch, start = batch.to(self.args.device), batch["input_ids"].shape[1]
        ids = model.policy.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=self.args.max_completion_length,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
        end = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        mask = until_end(ids[:, start:], end)
        attention = torch.cat([batch["attention_mask"], mask.long()], 1)
        texts = tokenizer.batch_decode(
            [row[keep.bool()] for row, keep in zip(ids[:, start:], mask, strict=True)],
            skip_special_tokens=True,
        )
        logs, _, values = model(ids, attention, start)
        difference = (logs - self._reference_logs(ids, attention, start)) * mask
        scores = torch.tensor(self.reward(prompts=prompts, completions=texts), device=ids.device)
        unended = (ids[:, start:] != end).all(1)
        worth = scores - self.args.missing_eos_penalty * unended
        rewards = -self.args.beta * difference
        rewards[torch.arange(len(ids)), mask.sum(1).long() - 1] += worth
        gain = advantages(rewards, values, mask, self.args.gamma, self.args.lam)
        returns, mean = gain + values, masked_mean(gain, mask)
        deviation = masked_mean((gain - mean) ** 2, mask).sqrt()
        unexplained = masked_mean((returns - values) ** 2, mask)
        centred = masked_mean((returns - masked_mean(returns, mask)) ** 2, mask)
        self._note(
            reward=scores.mean(),
            kl=difference.sum(1).mean(),
            completion_length=mask.sum(1).mean(),
            explained_variance=1 - unexplained / centred.clamp(min=1e-8),
        )
        old = {"logs": logs, "values": values, "mask": mask, "returns": returns}
        old["advantages"] = (gain - mean) / (deviation + 1e-8) * mask
        return {"ids": ids, "attention": attention, "start": start, "old": old, "stopped": False}

    def _note(self, **figures: Tensor) -> None:
        for name, value in figures.items():
            self.figures[name].append(float(self.accelerator.reduce(value.detach().float(), "mean")))

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:  # noqa: ANN401
        """Learn from the next minibatch of the rollout; from a new rollout when this one has served."""
        del num_items_in_batch
        model.train()
        turn = self.state.global_step % self.args.reuse
        if turn == 0 or not self.rollout:
            self.rollout = self.roll_out(inputs)
        rollout, count = self.rollout, len(self.rollout["ids"])
        if rollout["stopped"]:
            return torch.zeros((), device=self.args.device)  # without gradients weights stay as they are
        generator = torch.Generator().manual_seed(
            self.args.seed + self.state.global_step - turn % self.args.minibatches
        )
        order = torch.randperm(count, generator=generator)
        rows = order.tensor_split(self.args.minibatches)[turn % self.args.minibatches].to(self.args.device)
        new = model(rollout["ids"][rows], rollout["attention"][rows], rollout["start"])
        loss, figures = losses(new, {name: value[rows] for name, value in rollout["old"].items()}, self.args)
        self._note(**figures)
        rollout["stopped"] = self.figures["kl_step"][-1] > self.args.target_kl
        self.accelerator.backward(loss)
        return loss.detach()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the means of what was noted since."""
        means = {name: sum(values) / len(values) for name, values in self.figures.items()}
        self.figures.clear()
        super().log(logs | means, start_time)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:  # noqa: ANN401
        del state_dict
        folder = Path(output_dir or self.args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        model = self.accelerator.unwrap_model(self.model)
        trained = {n: p.detach().contiguous() for n, p in model.named_parameters() if p.requires_grad}
        save_file(trained, folder / STATE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ANN401
        del model
        saved = load_file(Path(resume_from_checkpoint) / STATE)
        self.accelerator.unwrap_model(self.model).load_state_dict(saved, strict=False)
