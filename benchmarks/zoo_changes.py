"""What people do to weights, as functions from one model, or several, to another; nothing is trained here."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import numpy as np
from zoo_data import WIDTH, Model

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    Float = NDArray[np.float32]
    Rng = np.random.Generator

AXES = {
    r"relative_attention_bias\.weight": (),
    r"(wte|wpe|shared|embed_tokens|lm_head|classifier|_embeddings)(\.weight)?": (..., "residual"),
    r"cls_token": (..., "residual"),
    r"patch_embeddings\.projection\.weight": ("residual", ...),
    r"patch_embeddings\.projection\.bias": ("residual",),
    r"(LayerNorm|norm\w*|layernorm\w*|ln_\w)\.(weight|bias)": ("residual",),
    r"attn\.c_attn\.weight": ("residual", "fused"),
    r"attn\.c_attn\.bias": ("fused",),
    r"attn\.c_proj\.weight": ("heads", "residual"),
    r"mlp\.c_fc\.weight": ("residual", "hidden"),
    r"mlp\.c_fc\.bias": ("hidden",),
    r"mlp\.c_proj\.weight": ("hidden", "residual"),
    r"c_proj\.bias": ("residual",),
    r"Attention\.[qkv]\.weight": (..., "residual"),  # all blocks share the positions of their heads
    r"Attention\.o\.weight": ("residual", ...),
    r"(query|key|value|[qkv]_proj)\.weight": ("heads", "residual"),
    r"(query|key|value|[qkv]_proj)\.bias": ("heads",),
    r"(attention\.output\.dense|o_proj)\.weight": ("residual", "heads"),
    r"(intermediate\.dense|gate_proj|up_proj|fc1|wi)\.weight": ("hidden", "residual"),
    r"(intermediate\.dense|fc1)\.bias": ("hidden",),
    r"(?<!attention\.)(output\.dense|down_proj|fc2|wo)\.weight": ("residual", "hidden"),
    r"(output\.dense|o_proj|fc2)\.bias": ("residual",),
    r"transform\.dense\.weight": ("residual", "residual"),
    r"transform\.dense\.bias": ("residual",),
    r"pooler\.dense\.weight": (..., "residual"),
    r"(predictions|classifier|pooler\.dense)\.bias": (),
}
"""End of a parameter's name → what its first and last axes count; ``...`` for those that keep their order."""

BLOCK = re.compile(r"(?<=\.)\d+(?=\.)|^\d+(?=\.)")


def axes(name: str, ndim: int) -> list[tuple[int, str]]:
    """Axes of a parameter that can be reordered, and what they count.

    Raises:
        KeyError: Nothing is known of such a name.
    """
    found = next((a for pattern, a in AXES.items() if re.search(rf"{pattern}$", name)), None)
    if found is None:
        raise KeyError(name)
    last = [(number, axis) for number, axis in enumerate(found) if isinstance(axis, str)]
    return [(number if number == 0 and found[0] != ... else ndim - 1, axis) for number, axis in last]


def layer(name: str) -> str:
    """Everything of a name before what stands behind its block's number."""
    numbers = list(BLOCK.finditer(name))
    return name[: numbers[0].end()] if numbers else ""


def matrices(model: Model) -> Iterator[tuple[str, Float]]:
    """Weights with at least two axes of some size."""
    return (
        (n, t) for n, t in model.tensors.items() if t.ndim > 1 and min(t.shape[0], t.size // t.shape[0]) >= 16
    )


def edited(model: Model, change: Mapping[str, Float]) -> Model:
    """With some tensors replaced."""
    return model.having({**model.tensors, **change})


# Coordinates


def permuted(model: Model, rng: Rng) -> Model:
    """Coordinates, heads and hidden units in another order; it computes the same."""
    heads = ("num_key_value_heads", "num_attention_heads", "n_head", "num_heads")
    groups = next(model.config[name] for name in heads if model.config.get(name))
    orders: dict[tuple[str, str], NDArray[np.intp]] = {}

    def order(name: str, axis: str, size: int) -> NDArray[np.intp]:
        kind, parts = ("heads", 3) if axis == "fused" else (axis, 1)
        count = groups if kind == "heads" else size
        key = (kind, "" if kind == "residual" else block(name))
        chosen = orders.setdefault(key, rng.permutation(count))
        return np.arange(size).reshape(parts, count, -1)[:, chosen].reshape(-1)

    tensors = dict(model.tensors)
    for name in sorted(tensors):
        for number, axis in axes(name, tensors[name].ndim):
            tensors[name] = tensors[name].take(order(name, axis, tensors[name].shape[number]), axis=number)
    return model.having(tensors)


def block(name: str) -> str:
    """The feed-forward or attention part a parameter belongs to: T5 numbers those too."""
    numbers = list(BLOCK.finditer(name))
    return name[: numbers[-1].end()] if numbers else ""


def rotated(model: Model, rng: Rng) -> Model:
    """The residual stream in a rotated basis, norm gains folded into what reads it; it computes the same."""
    turn = np.linalg.qr(rng.standard_normal((WIDTH, WIDTH)))[0]
    gains = {n: t for n, t in model.tensors.items() if "norm" in n}
    head = model.tensors.get("lm_head.weight", model.tensors["model.embed_tokens.weight"])
    tensors = {}
    for name, values in {**model.tensors, "lm_head.weight": head}.items():
        after = "post_attention_" if ".mlp." in name else "input_"
        norm = "model.norm.weight" if name == "lm_head.weight" else f"{layer(name)}.{after}layernorm.weight"
        if name in gains:
            tensors[name] = np.ones_like(values)
        elif re.search(r"(o|down)_proj\.weight$", name):
            tensors[name] = (turn.T @ values).astype(np.float32)
        elif values.ndim > 1:
            gain = 1.0 if "embed" in name else gains[norm]
            tensors[name] = ((values * gain) @ turn).astype(np.float32)
        else:
            tensors[name] = values
    return model.having(tensors, tie_word_embeddings=False)


# Names and order


def renamed(model: Model, rng: Rng) -> Model:
    """Names that say nothing."""
    names = rng.permutation(len(model.tensors))
    return model.having(
        {f"w{number:03d}": t for number, t in zip(names, model.tensors.values(), strict=True)}
    )


def reordered(model: Model, rng: Rng) -> Model:
    """Tensors stored in another order."""
    names = rng.permutation(list(model.tensors)).tolist()
    return model.having({name: model.tensors[name] for name in names})


# Shapes


def vocab_added(model: Model, rng: Rng, count: int = 64) -> Model:
    """More tokens, embedded at random around the mean."""
    size, tensors = model.config["vocab_size"], dict(model.tensors)
    for name, old in model.tensors.items():
        if len(old) == size:
            new = old.mean(axis=0) + old.std(axis=0) * rng.standard_normal((count, *old.shape[1:]))
            tensors[name] = np.concatenate([old, new.astype(np.float32)])
    return model.having(tensors, vocab_size=size + count)


def vocab_trimmed(model: Model, count: int = 1536) -> Model:
    """Only the first tokens."""
    size = model.config["vocab_size"]
    return model.having(
        {n: t[:count] if len(t) == size else t for n, t in model.tensors.items()}, vocab_size=count
    )


def restacked(model: Model, order: Callable[[int], Sequence[int]]) -> Model:
    """Blocks left out or repeated: ``order`` gives the old numbers in their new order."""
    tensors = {n: t for n, t in model.tensors.items() if not layer(n)}
    for stack in {layer(n).rpartition(".")[0] for n in model.tensors if layer(n)}:
        inside = {n: t for n, t in model.tensors.items() if layer(n).rpartition(".")[0] == stack}
        count = len({layer(n) for n in inside})
        for new, old in enumerate(order(count)):
            start = f"{stack}.{old}."
            tensors |= {
                f"{stack}.{new}.{n[len(start) :]}": t for n, t in inside.items() if n.startswith(start)
            }
    return model.having(tensors)


def without_block(model: Model) -> Model:
    """Without the block in the middle of each stack."""
    return restacked(model, lambda n: [i for i in range(n) if i != n // 2])


def upscaled(model: Model) -> Model:
    """The later half of the blocks twice."""
    return restacked(model, lambda n: sorted([*range(n), *range(n // 2, n)]))


def narrowed(model: Model, rng: Rng, axis: str, share: float = 0.75) -> Model:
    """Only some coordinates of the residual stream, or some hidden units of every block."""
    tensors, kept = dict(model.tensors), {}
    for name, values in model.tensors.items():
        for number, counts in axes(name, values.ndim):
            if counts == axis:
                size, key = tensors[name].shape[number], "" if axis == "residual" else block(name)
                some = np.sort(rng.permutation(size)[: round(share * size)])
                tensors[name] = tensors[name].take(kept.setdefault(key, some), axis=number)
    return model.having(tensors)


def with_experts(model: Model, rng: Rng, count: int = 4) -> Model:
    """Every feed-forward part as several equal experts, and a router."""
    tensors = dict(model.tensors)
    for name, values in model.tensors.items():
        if "hidden" in {counts for _, counts in axes(name, values.ndim)}:
            start, rest = block(name), name.removeprefix(block(name))
            tensors |= {f"{start}.experts.{number}{rest}": values.copy() for number in range(count)}
            tensors[f"{start}.router.weight"] = (0.02 * rng.standard_normal((count, WIDTH))).astype(
                np.float32
            )
            del tensors[name]
    return model.having(tensors)


def with_vision(model: Model, rng: Rng, width: int = 160, blocks: int = 4) -> Model:
    """The model as the language part of a larger one, beside a foreign vision tower."""
    sides = {"attention.q_proj": (width, width), "attention.k_proj": (width, width), "mlp.fc1": (640, width)}
    sides |= {"attention.v_proj": (width, width), "attention.o_proj": (width, width), "mlp.fc2": (width, 640)}
    shapes = {f"vision_tower.layers.{b}.{n}.weight": s for b in range(blocks) for n, s in sides.items()}
    tower = {
        name: (0.05 * rng.standard_normal(shape)).astype(np.float32)
        for name, shape in {**shapes, "projector.weight": (WIDTH, width)}.items()
    }
    return model.having({**{f"language_model.{n}": t for n, t in model.tensors.items()}, **tower})


# Values


def cast(model: Model, dtype: Any) -> Model:  # noqa: ANN401 - numpy's or ml_dtypes'
    """All weights rounded to a narrower type."""
    return model.having({n: t.astype(dtype) for n, t in model.tensors.items()})


def quantized(model: Model, bits: int, group: int = 0) -> Model:
    """Matrices on a symmetric lattice, one scale per so many values of a row, or per row."""
    levels = np.float32(2 ** (bits - 1) - 1)

    def to_lattice(values: Float) -> Float:
        rows = values.reshape(len(values), -1)
        groups = rows.reshape(-1, group if group and rows.shape[1] % group == 0 else rows.shape[1])
        step = np.maximum(np.abs(groups).max(axis=1, keepdims=True), np.float32(1e-20)) / levels
        return (np.rint(groups / step) * step).reshape(values.shape)

    return edited(model, {n: to_lattice(t) for n, t in matrices(model)})


def pruned(model: Model, group: int = 0) -> Model:
    """The smaller half of each matrix set to zero; with a group, the smaller half of each so many values."""

    def emptied(values: Float) -> Float:
        rows = np.abs(values).reshape(-1, group or values.size)
        small = rows.argsort(axis=1, kind="stable")[:, : rows.shape[1] // 2]
        mask = np.ones(rows.shape, bool)
        np.put_along_axis(mask, small, False, axis=1)
        return values * mask.reshape(values.shape)

    return edited(model, {n: emptied(t) for n, t in matrices(model)})


def noisy(model: Model, rng: Rng, share: float) -> Model:
    """Noise of so many standard deviations of each matrix."""
    return edited(
        model,
        {
            n: t + (share * t.std() * rng.standard_normal(t.shape)).astype(np.float32)
            for n, t in matrices(model)
        },
    )


def shuffled(model: Model, rng: Rng) -> Model:
    """The same values in every tensor, in random order: a stranger."""
    return edited(
        model, {n: rng.permutation(t.reshape(-1)).reshape(t.shape) for n, t in model.tensors.items()}
    )


# Several parents


def blended(models: Sequence[Model], shares: Sequence[float]) -> Model:
    """Weighted mean."""
    tensors = {
        name: sum(np.float32(w) * m.tensors[name] for w, m in zip(shares, models, strict=True))
        for name in models[0].tensors
    }
    return models[0].having(tensors)


def slerped(models: Sequence[Model], share: float) -> Model:
    """Tensor by tensor along the great circle from the first to the second."""

    def between(x: Float, y: Float) -> Float:
        cosine = float(np.vdot(x, y) / max(float(np.linalg.norm(x) * np.linalg.norm(y)), 1e-30))
        angle = float(np.arccos(np.clip(cosine, -1, 1)))
        if angle < 1e-3:
            return x + np.float32(share) * (y - x)
        first, second = np.sin((1 - share) * angle), np.sin(share * angle)
        return ((first * x + second * y) / np.sin(angle)).astype(np.float32)

    a, b = models
    return a.having({n: between(t, b.tensors[n]) for n, t in a.tensors.items()})


def ties(models: Sequence[Model], density: float = 0.3) -> Model:
    """TIES: the largest changes to a base (the first), those of the sign that wins, averaged."""
    base, children = models[0], models[1:]

    def merged(name: str, start: Float) -> Float:
        changes = np.stack([m.tensors[name] - start for m in children])
        cuts = np.quantile(np.abs(changes).reshape(len(changes), -1), 1 - density, axis=1)
        changes *= np.abs(changes) >= cuts.reshape(-1, *[1] * start.ndim)
        agree = (np.sign(changes) == np.sign(changes.sum(axis=0))) & (changes != 0)
        mean: Float = (changes * agree).sum(axis=0) / np.maximum(agree.sum(axis=0), 1)
        return (start + mean).astype(np.float32)

    return base.having({n: merged(n, t) for n, t in base.tensors.items()})


def layerwise(models: Sequence[Model]) -> Model:
    """Every second block from the second model, everything else from the first."""
    a, b = models
    odd = {n for n in a.tensors if layer(n) and int(layer(n).rpartition(".")[2]) % 2}
    return a.having({n: b.tensors[n] if n in odd else t for n, t in a.tensors.items()})
