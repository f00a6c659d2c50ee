"""The packed encoder computes what the padded one does, and does no work for padding.

Six layers of width 384 with weights as they are after training: outlier channels, matrices of unit gain. The
padded batch masks the keys of its padding. One thread; times are processor time, the least of three.

Run: python benchmarks/onevision.py
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from harness import Gate, Result, main
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from hilm.models.onevision import (
    PRESETS,
    OneVisionConfig,
    OneVisionModel,
    OneVisionPackedConfig,
    OneVisionPackedModel,
    PackedBatch,
    convert_state_dict,
    pack,
    unpack,
    unpatchify,
    virtual_slots,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor
    from torch.nn import Module

FIELDS = PRESETS["small"] | {"use_head": False}
PATCH = FIELDS["patch_size"]
ONE_LARGE = [(30, 40), *[(12, 12)] * 9]
MIXED = [(10, 14), (32, 18), (16, 16), (9, 7), (30, 40), (20, 22)]
EQUAL = [(16, 16)] * 6
SAMPLES = [(1, 1, 1), (1, 9, 7), (1, 16, 16), (1, 12, 30), (3, 6, 5), (8, 12, 10), (1, 24, 20)]
"""Frames, rows and columns of patches: a single token up to a clip of 8 frames."""

Models = tuple[OneVisionModel, OneVisionPackedModel]


def trained_like() -> dict[str, Tensor]:
    """Weights with the scales and the outlier channels that training leaves."""
    torch.manual_seed(0)
    state = OneVisionModel(OneVisionConfig(**FIELDS)).state_dict()
    for name, weight in state.items():
        if weight.ndim > 1:
            gain = (
                2.0 if ".q_" in name or ".k_" in name else 1.5 if "out_proj" in name or "fc2" in name else 1.0
            )
            weight.normal_(std=gain / weight[0].numel() ** 0.5)
        elif name.endswith("fc2.bias"):
            weight.normal_(std=0.05)
    state["encoder.layers.1.mlp.fc2.bias"][[7, 101]] = torch.tensor([60.0, -40.0])
    return state


def models(dtype: torch.dtype = torch.float32, compute: str = "float32") -> Models:
    """Return both variants with the same weights; ``compute`` is the padded one's precision of rotation."""
    padded = OneVisionModel(OneVisionConfig(**FIELDS, rope_compute=compute))
    padded.load_state_dict(trained_like())
    packed = OneVisionPackedModel(OneVisionPackedConfig(**FIELDS))
    packed.load_state_dict(convert_state_dict(padded.state_dict(), "padded", "packed", padded.config))
    return padded.to(dtype).eval(), packed.to(dtype).eval()


def clips(grids: list[tuple[int, int, int]]) -> list[tuple[Tensor, Tensor | None]]:
    torch.manual_seed(1)
    return [(torch.randn(3, t, h * PATCH, w * PATCH), virtual_slots(t, 64)) for t, h, w in grids]


def alone(model: OneVisionModel, clip: Tensor, slots: Tensor) -> tuple[Tensor, ...]:
    clip = clip.to(model.dtype)[None]
    states = model(clip, frame_slots=slots[None], output_hidden_states=True).hidden_states
    return tuple(state[0] for state in states)


def together(model: OneVisionPackedModel, samples: list[tuple[Tensor, Tensor]]) -> list[tuple[Tensor, ...]]:
    batch = pack([(clip.to(model.dtype), slots) for clip, slots in samples], PATCH)
    out = model(batch.patches, batch.grid_thw, batch.patch_positions, output_hidden_states=True)
    return list(zip(*(unpack(state, batch.grid_thw) for state in out.hidden_states), strict=True))


def relative(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def one_by_one(both: Models, samples: list[tuple[Tensor, Tensor]]) -> float:
    """Largest difference of any hidden state, each sample in a forward pass of its own."""
    padded, packed = both
    pairs = [(alone(padded, *sample), together(packed, [sample])[0]) for sample in samples]
    return max(float((a - b).abs().max()) for states in pairs for a, b in zip(*states, strict=True))


def in_one_pack(both: Models, samples: list[tuple[Tensor, Tensor]]) -> float:
    """Largest relative difference of a sample's hidden state in a pack of all from that alone."""
    padded, packed = both
    pairs = zip(together(packed, samples), (alone(padded, *sample) for sample in samples), strict=True)
    return max(relative(a, b) for states in pairs for a, b in zip(*states, strict=True))


def literal(padded: OneVisionModel) -> float:
    """Largest difference between a clip of 64 frames of which 8 are visible, and those 8 frames alone."""
    torch.manual_seed(2)
    clip, slots = torch.randn(3, 64, 4 * PATCH, 5 * PATCH), virtual_slots(8, 64)
    visible = (slots[:, None] * 20 + torch.arange(20)).flatten()[None]
    whole = padded(clip[None], visible, output_hidden_states=True).hidden_states
    few = alone(padded, clip[:, slots], slots)
    return max(float((a[0] - b).abs().max()) for a, b in zip(whole, few, strict=True))


def low_precision(samples: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Least cosine of a token and largest relative difference at the last block's input, in bfloat16."""
    padded, packed = models(torch.bfloat16, compute="input")
    pairs = [(together(packed, [sample])[0][-2], alone(padded, *sample)[-2]) for sample in samples]
    cosines = [torch.cosine_similarity(a.double(), b.double(), dim=-1).min() for a, b in pairs]
    return float(min(cosines)), max(relative(a, b) for a, b in pairs)


def as_batch(batch: PackedBatch) -> tuple[Tensor, Tensor, Tensor]:
    """Pad a pack: pixels (B, C, h, w) of each sample's patches, positions (B, N, 3), keys (B, 1, 1, N)."""
    parts = unpack(batch.patches, batch.grid_thw)
    rows, columns = max(((h, w) for _, h, w in batch.grid_thw.tolist()), key=lambda size: size[0] * size[1])
    grown = torch.nn.utils.rnn.pad_sequence(parts, batch_first=True)
    pixels = torch.stack([unpatchify(part, (1, rows, columns), PATCH)[:, 0] for part in grown])
    places = torch.nn.utils.rnn.pad_sequence(unpack(batch.patch_positions, batch.grid_thw), batch_first=True)
    lengths = batch.grid_thw.prod(-1)
    return pixels, places, (torch.arange(grown.shape[1]) < lengths[:, None])[:, None, None]


def speed(both: Models, grids: list[tuple[int, int]]) -> tuple[float, float, float]:
    """Time of a padded batch over that of the pack, patches per second of the pack, and their difference."""
    padded, packed = both
    batch = pack([(clip, None) for clip, _ in clips([(1, h, w) for h, w in grids])], PATCH)
    pixels, places, keys = as_batch(batch)

    def masked(
        module: Module, q: Tensor, k: Tensor, v: Tensor, _: None, **options: float
    ) -> tuple[Tensor, None]:
        return sdpa_attention_forward(module, q, k, v, keys, **options)

    AttentionInterface.register("masked", masked)
    padded.set_attn_implementation("masked")
    first = padded(pixels, patch_positions=places).last_hidden_state
    second = packed(batch.patches, batch.grid_thw).last_hidden_state
    slow = cost(lambda: padded(pixels, patch_positions=places))
    fast = cost(lambda: packed(batch.patches, batch.grid_thw))
    padded.set_attn_implementation("sdpa")
    return slow / fast, len(batch.patches) / fast, relative(first[keys[:, 0, 0]], second)


def cost(action: Callable[[], object]) -> float:
    """Least processor time of three calls, in seconds."""
    times = []
    for _ in range(3):
        start = time.process_time()
        action()
        times.append(time.process_time() - start)
    return min(times)


@torch.no_grad()
def measure() -> Result:
    torch.set_num_threads(1)
    both, samples = models(), clips(SAMPLES)
    cosine, bf16 = low_precision(samples)
    large, mixed, equal = (speed(both, grids) for grids in (ONE_LARGE, MIXED, EQUAL))
    return Result(
        name="onevision",
        claim="The packed vision encoder computes what the padded one does, and does no work for padding",
        command="python benchmarks/onevision.py",
        gates=(
            Gate("difference, one sample per forward", one_by_one(both, samples), "<=", 0.0, ""),
            Gate("difference of 64 frames, 8 visible, from 8", literal(both[0]), "<=", 0.0, ""),
            Gate("relative difference, a pack of seven", in_one_pack(both, samples), "<=", 2e-6, ""),
            Gate("1 - least cosine, bfloat16", 1 - cosine, "<=", 1e-4, ""),
            Gate("relative difference, bfloat16", bf16, "<=", 1.2e-2, ""),
            Gate("speed over a padded batch, pad ratio 4.8", large[0], ">=", 3, "x", 5),
            Gate("speed over a padded batch, six mixed grids", mixed[0], ">=", 2, "x", 3),
            Gate("speed over a batch of equal grids", equal[0], ">=", 0.7, "x"),
        ),
        figures={
            "packed, pad ratio 4.8": (large[1], "patches/s"),
            "packed, six mixed grids": (mixed[1], "patches/s"),
            "relative difference of the batches that were timed": (max(large[2], mixed[2], equal[2]), ""),
        },
    )


if __name__ == "__main__":
    main(measure)
