"""Experts, and the two ways to choose among them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.activations import ACT2FN
from transformers.integrations import use_experts_implementation
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

from .mixer import scattering_phase

if TYPE_CHECKING:
    from .configuration_resnet_bk import ResNetBKConfig

GROUP_ROWS = 64
"""Rows from which on a matrix product treats each row alike."""


@use_experts_implementation(has_gate=False)
class ResNetBKExperts(nn.Module):
    """Two-layer perceptrons without biases, stacked: ``up_proj`` (M, d_ff, d), ``down_proj`` (M, d, d_ff)."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.num_experts = config.num_experts
        self.up_proj = nn.Parameter(torch.empty(config.num_experts, config.d_ff, config.d_model))
        self.down_proj = nn.Parameter(torch.empty(config.num_experts, config.d_model, config.d_ff))
        self.act_fn = ACT2FN["gelu_pytorch_tanh"]  # ONNX Runtime has no erf in double precision

    @property
    def skips(self) -> bool:
        """Whether a token that chooses ``num_experts`` costs nothing, instead of being an error."""
        name = self.config._experts_implementation  # noqa: SLF001 - set_experts_implementation() writes it
        return name == "eager" and not torch.compiler.is_compiling()

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Sum the chosen experts' answers.

        A matrix product of few rows rounds differently from one of many. Groups are filled up, so that what a
        token gets does not depend, to the bit, on how later tokens are routed.

        Args:
            hidden: (T, d).
            chosen: (T, top_k) integers; ``num_experts`` is nobody.
            weights: (T, top_k).

        Returns:
            (T, d).
        """
        if torch.compiler.is_compiling():  # groups of unknown size cannot be compiled
            return ALL_EXPERTS_FUNCTIONS["grouped_mm"](self, hidden, chosen, weights)
        out, up, down = torch.zeros_like(hidden), self.up_proj, self.down_proj
        fewest = min(len(hidden), GROUP_ROWS)
        for expert in chosen[chosen < self.num_experts].unique().tolist():
            token, slot = torch.where(chosen == expert)
            rows = hidden[functional.pad(token, (0, max(0, fewest - len(token))))]
            answer = functional.linear(self.act_fn(functional.linear(rows, up[expert])), down[expert])
            answer = answer[: len(token)] * weights[token, slot, None]
            out.index_add_(0, token, answer.to(out.dtype))
        return out


class LearnedRouter(nn.Module):
    """Chooses experts by a linear map of the token."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.proj = nn.Linear(config.d_model, config.num_experts)

    def forward(self, hidden: Tensor, green: Tensor) -> Tensor:
        """Return logits (T, M) for tokens (T, d)."""
        del green
        logits: Tensor = self.proj(hidden).float()
        return logits


class ScatteringRouter(nn.Module):
    """Chooses experts by the scattering phase: each owns an interval of it, after a learned calibration."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.scale = config.scattering_scale
        self.gamma = nn.Parameter(torch.empty(1))
        self.beta = nn.Parameter(torch.empty(1))
        self.num_experts = config.num_experts
        self.initial_gamma = max(1.0, config.num_experts * math.sqrt(config.bk_channels) / 2)

    def forward(self, hidden: Tensor, green: Tensor) -> Tensor:
        """Return logits (T, M) for Green's functions (T, H, 2)."""
        del hidden
        phase = torch.logit(scattering_phase(green).float(), eps=1e-6)
        place = torch.sigmoid(self.gamma.float() * phase + self.beta.float())
        centers = torch.arange(self.num_experts, device=place.device) + 0.5
        return -(self.num_experts * place[:, None] - centers).square() / (2 * self.scale)


class ResNetBKMoE(nn.Module):
    """Experts weighed by the router's probability of them, so that the router learns even at top_k = 1."""

    def __init__(self, config: ResNetBKConfig) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.router = (ScatteringRouter if config.use_scattering_router else LearnedRouter)(config)
        self.experts = ResNetBKExperts(config)

    def forward(self, hidden: Tensor, green: Tensor, active: Tensor | None) -> tuple[Tensor, Tensor]:
        """Answer every token, or every active one.

        Args:
            hidden: (B, N, d).
            green: (B, N, H, 2).
            active: (B, N) bool; the others' answers do not matter, and are left out where that saves work.

        Returns:
            (B, N, d), and router logits (B · N, M).
        """
        tokens = hidden.flatten(0, 1)
        logits = self.router(tokens, green.flatten(0, 1))
        weights, chosen = logits.softmax(-1).topk(self.top_k, -1)
        weights = weights.to(hidden.dtype)
        if active is not None and self.experts.skips:
            chosen = chosen.masked_fill(~active.flatten()[:, None], self.experts.num_experts)
        return self.experts(tokens, chosen, weights).view_as(hidden), logits


def load_balance(router_logits: tuple[Tensor, ...], top_k: int, keep: Tensor | None) -> Tensor:
    """Return M · sum over experts of mean probability times share of tokens, averaged over layers.

    Args:
        router_logits: (T, M) per layer.
        top_k: Experts per token.
        keep: (B, N) mask, T = B · N; masked tokens do not count.
    """
    probabilities = torch.stack([logits.softmax(-1) for logits in router_logits])
    chosen = torch.zeros_like(probabilities).scatter_(-1, probabilities.topk(top_k, -1).indices, 1.0)
    count = (
        probabilities.new_ones(len(probabilities[0])) if keep is None else keep.flatten().to(torch.float32)
    )
    share = count / count.sum().clamp_min(1)
    means = (torch.einsum("ltm,t->lm", values, share) for values in (probabilities, chosen))
    return probabilities.shape[-1] * torch.mul(*means).sum(-1).mean()
