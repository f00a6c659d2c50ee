"""What both variants are made of: attention within segments, blocks, the pooling head."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hilm.models.onevision.rope import Rotation, rotate

if TYPE_CHECKING:
    from collections.abc import Sequence

    from hilm.models.onevision.config import OneVisionConfig


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Attend in plain operations, (B, heads, N, head_dim) to (B, N, heads, head_dim) and probabilities."""
    del attention_mask
    precision = torch.promote_types(query.dtype, torch.float32)
    weights = (query @ key.transpose(2, 3) * scaling).softmax(-1, dtype=precision).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class OneVisionAttention(nn.Module):
    """Self-attention of every segment to itself; the packed variant has one projection for three."""

    is_causal = False

    def __init__(self, config: OneVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.scaling = config.head_dim**-0.5
        width = config.hidden_size
        if config.packed:
            self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        else:
            self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(
        self, hidden: Tensor, angles: Rotation, lengths: list[int] | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Attend.

        Args:
            hidden: (B, N, D), every row of the batch a segment; or (S, D) with ``lengths``.
            angles: Rotation of every token.
            lengths: Tokens of each segment.

        Returns:
            Like ``hidden``, and the probabilities (B, heads, N, N) if the implementation has them.
        """
        q, k, v = (states.unflatten(-1, (-1, self.config.head_dim)) for states in self._projected(hidden))
        q, k = (rotate(states, angles, self.config.rope_style) for states in (q, k))
        if lengths is None:
            mixed, weights = self._attend(q, k, v)
        else:
            segments = zip(*(states[None].split(lengths, 1) for states in (q, k, v)), strict=True)
            mixed, weights = torch.cat([self._attend(*segment)[0] for segment in segments], 1)[0], None
        merge = self.proj if self.config.packed else self.out_proj
        return merge(mixed.flatten(-2)), weights

    def _projected(self, hidden: Tensor) -> Sequence[Tensor]:
        if not self.config.packed:
            return self.q_proj(hidden), self.k_proj(hidden), self.v_proj(hidden)
        parts: Sequence[Tensor] = self.qkv(hidden).chunk(3, -1)
        return parts

    def _attend(self, *states: Tensor) -> tuple[Tensor, Tensor | None]:
        """Mix (B, N, heads, head_dim) with the implementation that was chosen for the model."""
        name = self.config._attn_implementation  # noqa: SLF001 - set_attn_implementation() writes it
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(name, eager_attention)
        dropout = self.config.attention_dropout if self.training else 0.0
        q, k, v = (part.transpose(1, 2) for part in states)
        result: tuple[Tensor, Tensor | None] = attend(
            self, q, k, v, None, scaling=self.scaling, dropout=dropout
        )
        return result


class OneVisionMLP(nn.Module):
    """Two-layer perceptron."""

    def __init__(self, config: OneVisionConfig) -> None:
        super().__init__()
        self.act = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the update of (…, D)."""
        update: Tensor = self.fc2(self.act(self.fc1(hidden)))
        return update


class OneVisionBlock(GradientCheckpointingLayer):
    """Residual updates by attention, then by the perceptron, each behind its norm."""

    def __init__(self, config: OneVisionConfig) -> None:
        super().__init__()
        self.layer_norm1 = norm(config)
        self.self_attn = OneVisionAttention(config)
        self.layer_norm2 = norm(config)
        self.mlp = OneVisionMLP(config)

    def forward(self, hidden: Tensor, angles: Rotation, lengths: list[int] | None = None) -> Tensor:
        """Update the stream; arguments as of :meth:`OneVisionAttention.forward`."""
        hidden = hidden + self.self_attn(self.layer_norm1(hidden), angles, lengths)[0]
        updated: Tensor = hidden + self.mlp(self.layer_norm2(hidden))
        return updated


class OneVisionHead(nn.Module):
    """Pools each sample with a learned query; its norm is RMSNorm whatever the blocks have."""

    def __init__(self, config: OneVisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.probe = nn.Parameter(torch.empty(1, 1, width))
        self.attention = nn.MultiheadAttention(width, config.num_attention_heads, batch_first=True)
        self.norm = nn.RMSNorm(width, eps=config.layer_norm_eps)
        self.mlp = OneVisionMLP(config)

    def forward(self, hidden: Tensor) -> Tensor:
        """Pool (B, N, D) to (B, D)."""
        probe = self.probe.expand(len(hidden), -1, -1)
        pooled: Tensor = self.attention(probe, hidden, hidden, need_weights=False)[0][:, 0]
        return pooled + self.mlp(self.norm(pooled))


def norm(config: OneVisionConfig) -> nn.Module:
    """Make a norm of the configured type."""
    kind = nn.LayerNorm if config.layer_norm_type == "layer_norm" else nn.RMSNorm
    return kind(config.hidden_size, eps=config.layer_norm_eps)
