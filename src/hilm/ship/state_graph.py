"""ResNet-BK as a recurrent graph: tokens and a state of fixed size in, logits and the new state out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.export import Dim

from hilm.errors import UsageError
from hilm.models.resnet_bk import ResNetBKCache, ResNetBKConfig
from hilm.ship.onnx_verify import difference, open_session, run, summarise

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir
    from numpy.typing import NDArray

    from hilm.models.resnet_bk import ResNetBKForCausalLM
    from hilm.ship.onnx_verify import VerificationReport

SAMPLE = {"step": 1, "chunk": 21}
"""Kind of graph → tokens it is traced with."""


class Recurrence(nn.Module):
    """A causal model with its state as plain tensors, one per kind of state, all layers stacked first."""

    def __init__(self, model: ResNetBKForCausalLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, position_ids: Tensor, *past: Tensor) -> tuple[Tensor, ...]:
        """Advance by (B, N) tokens at (B, N) positions: logits (B, N, V) and the states (L, B, …)."""
        cache = ResNetBKCache(self.model.config)
        for index, layer in enumerate(cache.layers):
            layer.state, layer.is_initialized = [values[index] for values in past], True
        logits = self.model(
            input_ids, position_ids=position_ids, past_key_values=cache, use_cache=True, return_dict=True
        ).logits
        states = zip(*(layer.state for layer in cache.layers), strict=True)
        return logits, *(torch.stack(values) for values in states)


def empty_state(config: ResNetBKConfig, batch: int) -> list[Tensor]:
    """Return the state before the first token: n, y and the potential's strength, as far as they are used."""
    channels, core = config.bk_channels, getattr(torch, config.core_dtype)
    shapes: list[tuple[torch.dtype, tuple[int, ...]]] = [(torch.float64, (channels, 2))]
    if config.use_semiseparable:
        shapes.append((core, (channels, config.d_model // channels * (config.low_rank or 1), 2)))
    if config.use_birman_schwinger:
        shapes.append((torch.float64, (channels,)))
    return [torch.zeros(config.n_layers, batch, *shape, dtype=dtype) for dtype, shape in shapes]


def state_graph(model: ResNetBKForCausalLM, graph: str, opset: int) -> onnx_ir.Model:
    """Trace a recurrent graph.

    Raises:
        UsageError: There is no such graph, or the model has no state of fixed size.
    """
    if graph not in SAMPLE:
        raise UsageError(f"there is no graph {graph!r}", hint=f"full, {', '.join(SAMPLE)}")
    if not isinstance(model.config, ResNetBKConfig) or not model.config.causal:
        raise UsageError(
            f"{type(model).__name__} has no state of fixed size",
            hint="only a causal ResNet-BK does; use full",
        )
    length = SAMPLE[graph]
    past = empty_state(model.config, 2)
    ids = torch.ones(2, length, dtype=torch.long)
    positions = torch.arange(length).expand(2, length).contiguous()
    sides = {0: Dim.AUTO} if graph == "step" else {0: Dim.AUTO, 1: Dim.AUTO}
    dispatch = model.get_experts_implementation()
    model.set_experts_implementation("batched_mm")
    try:
        program: Any = torch.onnx.export(
            Recurrence(model).eval(),
            (ids, positions, *past),
            input_names=["input_ids", "position_ids", *(f"past_{i}" for i in range(len(past)))],
            output_names=["logits", *(f"present_{i}" for i in range(len(past)))],
            dynamic_shapes=(sides, sides, tuple({1: Dim.AUTO} for _ in past)),
            opset_version=opset,
            dynamo=True,
            verbose=False,
        )
    finally:
        model.set_experts_implementation(dispatch)
    return program.model


class OnnxStreamer:
    """Generation from a step or a chunk graph, in constant memory.

    Args:
        path: The graph.
        config: Of the model.
        batch: Rows.
    """

    def __init__(self, path: Path | str, config: ResNetBKConfig, batch: int = 1) -> None:
        self.session = open_session(path)
        self.whole = not isinstance(self.session.get_inputs()[0].shape[1], int)
        self.state = [values.numpy() for values in empty_state(config, batch)]
        self.seen = 0

    def feed(self, ids: NDArray[Any]) -> NDArray[Any]:
        """Take (B, N) tokens; return their logits, (B, N, V)."""
        pieces = [ids] if self.whole else np.split(ids, ids.shape[1], axis=1)
        return np.concatenate([self._advance(piece) for piece in pieces], 1)

    def generate(self, ids: NDArray[Any], max_new_tokens: int) -> NDArray[Any]:
        """Continue (B, N) tokens with the likeliest ones; return all of them."""
        token = ids
        for _ in range(max_new_tokens):
            token = self.feed(token)[:, -1:].argmax(-1)
            ids = np.concatenate([ids, token], 1)
        return ids

    def _advance(self, ids: NDArray[Any]) -> NDArray[Any]:
        positions = np.broadcast_to(np.arange(self.seen, self.seen + ids.shape[1]), ids.shape)
        past = {f"past_{i}": values for i, values in enumerate(self.state)}
        answer = run(self.session, {"input_ids": ids, "position_ids": positions, **past})
        self.state = [answer[f"present_{i}"] for i in range(len(self.state))]
        self.seen += ids.shape[1]
        return answer["logits"]


def verify_state_graph(
    model: ResNetBKForCausalLM, path: Path, graph: str, tolerance: float
) -> VerificationReport:
    """Compare a recurrent graph, fed piece by piece, with one forward pass over all tokens."""
    pieces = [1] * 40 if graph == "step" else [1, 2, 17, 64, 5, 128]
    runs, shapes = [], []
    for batch in (1, 3):
        random = torch.Generator().manual_seed(batch)
        ids = torch.randint(model.config.vocab_size, (batch, sum(pieces)), generator=random)
        streamer = OnnxStreamer(path, model.config, batch)
        logits = [streamer.feed(piece.numpy()) for piece in ids.split(pieces, 1)]
        runs.append(difference(model(ids).logits.numpy(), np.concatenate(logits, 1), None))
        shapes += [(batch, length) for length in (*pieces, sum(pieces))]
    return summarise(path, runs, shapes, tolerance)
