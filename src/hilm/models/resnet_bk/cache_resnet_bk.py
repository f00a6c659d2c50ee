"""The state ResNet-BK carries from token to token: its size does not depend on the length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from transformers import PreTrainedConfig

HISTORY = 256
"""Tokens that can be taken back while the past is recorded."""


class ResNetBKCacheLayer(CacheLayerMixin):
    """State of one layer after the last token.

    Attributes:
        state: Tensors with the batch first: the Green's function, and what the configuration adds to it.
    """

    is_croppable = True

    def __init__(self) -> None:
        super().__init__()
        self.state: list[Tensor] = []
        self.history: list[Tensor] = []
        self.record_past = False
        self.seen = 0

    def lazy_initialization(self, *trajectory: Tensor) -> None:
        """Start from zeros, shaped like one step of the trajectory; its device is where the state lives."""
        self.device = trajectory[0].device
        self.state = [torch.zeros_like(values[:, 0]) for values in trajectory]
        self.is_initialized = True

    def update(self, *trajectory: Tensor) -> None:
        """Take the states after each of N further tokens, each (B, N, …); the last one is the new state."""
        if not trajectory[0].shape[1]:
            return
        if not self.is_initialized:
            self.lazy_initialization(*trajectory)
        if self.record_past:
            past = self.history or [values[:, None] for values in self.state]
            self.history = [
                torch.cat([old, new], 1)[:, -HISTORY - 1 :] for old, new in zip(past, trajectory, strict=True)
            ]
        self.state = [values[:, -1].contiguous() for values in trajectory]
        self.seen += trajectory[0].shape[1]

    def activate_past_recording(self) -> None:
        """From now on keep the last states, so that tokens can be taken back."""
        self.record_past = True

    def crop(self, tokens_to_remove: int) -> None:
        """Take back the last ``-tokens_to_remove`` tokens and forget the history.

        Raises:
            ValueError: A positive number.
            RuntimeError: More tokens than were recorded.
        """
        if tokens_to_remove > 0:
            raise ValueError(f"crop takes the negative number of tokens to remove, not {tokens_to_remove}")
        recorded = self.history[0].shape[1] - 1 if self.history else 0
        if -tokens_to_remove > recorded:
            raise RuntimeError(
                f"cannot take back {-tokens_to_remove} tokens: {recorded} are recorded (at most {HISTORY}, "
                "after activate_past_recording())"
            )
        if tokens_to_remove:
            self.state = [values[:, tokens_to_remove - 1].contiguous() for values in self.history]
            self.seen += tokens_to_remove
        self.history = []

    def get_seq_length(self) -> int:
        """Return how many tokens were seen, masked ones included."""
        return self.seen

    def get_max_length(self) -> int:
        """Return -1: there is no longest text."""
        return -1

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return the length of a mask over all tokens, and its offset."""
        return self.seen + query_length, 0

    def reset(self) -> None:
        """Forget every token."""
        self.state, self.history, self.seen, self.is_initialized = [], [], 0, False

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take the rows of the chosen beams."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row."""
        self._map(lambda values: values.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows."""
        self._map(lambda values: values[indices.to(values.device)])

    def offload(self) -> None:
        """Move to the processor's memory."""
        self._map(lambda values: values.to("cpu"))

    def prefetch(self) -> None:
        """Move back to where the layer computes."""
        self._map(lambda values: values.to(self.device))

    def _map(self, change: Callable[[Tensor], Tensor]) -> None:
        self.state = [change(values) for values in self.state]
        self.history = [change(values) for values in self.history]


class ResNetBKCache(Cache):
    """States of all layers of a model with this configuration."""

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(layers=[ResNetBKCacheLayer() for _ in range(config.num_hidden_layers)])

    @property
    def state_bytes(self) -> int:
        """Size of the state, all layers and rows."""
        return sum(values.nbytes for layer in self.layers for values in layer.state)
