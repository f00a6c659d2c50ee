"""What is done to the bases of the zoo, and what that makes of them: the truth lineage is measured by."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import zoo_changes as changes

if TYPE_CHECKING:
    from collections.abc import Callable

    from zoo_data import Model

BASES = 3
REAL = "minilm"
TRAINED = ("gpt2", "bert", "llama", "qwen2", "t5", "vit")


@dataclass(frozen=True, slots=True)
class Animal:
    """One model of the zoo, and the truth about it.

    Attributes:
        name: Of its folder.
        family: Name of its base.
        architecture: Whose tensors it has.
        change: What was done; ``base`` for a base.
        parents: Names of what it was made from, and the shares where that was a weighted sum.
        relations: What it may be called in relation to its base.
        bases: Bases it has tensors of: two for a layer-wise merge.
    """

    name: str
    family: str
    architecture: str
    change: str
    parents: tuple[str, ...]
    shares: tuple[float, ...]
    relations: tuple[str, ...]
    bases: tuple[str, ...]

    @property
    def seed(self) -> str:
        """Number of the family."""
        return self.family.rpartition("-")[2]


@dataclass(frozen=True, slots=True)
class Recipe:
    """How a change is made from its parents (``base`` or changes of the family), and what it is then."""

    make: Callable[..., Model]
    relations: tuple[str, ...]
    parents: tuple[str, ...] = ("base",)
    random: bool = False
    trains: bool = False
    only: tuple[str, ...] = (*TRAINED, REAL)
    seeds: int = BASES
    keeps_function: bool = False
    shares: tuple[float, ...] = ()


TEXT = ("gpt2", "bert", "llama", "qwen2", "t5")
RMS = ("llama", "qwen2")
TUNED = ("fine-tune",)
HEAVY = ("fine-tune", "shares-ancestor")
SIZED = ("subset", "resized")


def trained(**how: Any) -> Callable[..., Model]:  # noqa: ANN401 - arguments of ``train``
    """A recipe that trains; the random numbers belong to the new model alone."""

    def make(model: Model, animal: Animal) -> Model:
        from zoo_training import train  # noqa: PLC0415 - most models need no torch

        return train(model, animal.architecture, (animal.architecture, animal.seed, animal.change), **how)[0]

    return make


def chained(*makers: Callable[..., Model]) -> Callable[..., Model]:
    """One change after another."""

    def make(model: Model, *rest: Any) -> Model:  # noqa: ANN401 - passed on
        for maker in makers:
            model = maker(model, *rest)
        return model

    return make


def still(change: Callable[..., Model], *arguments: object, **options: object) -> Callable[..., Model]:
    """A change without random numbers, where its neighbours in a chain have some."""
    return lambda model, *_: change(model, *arguments, **options)


bf16, fp16 = partial(changes.cast, dtype=ml_dtypes.bfloat16), partial(changes.cast, dtype=np.float16)
RECIPES = {
    "ft_short": Recipe(trained(steps=15, rate=1e-4), TUNED, trains=True, only=TRAINED),
    "ft_two": Recipe(trained(steps=25, rate=5e-4), TUNED, trains=True, only=TRAINED),
    "ft_long": Recipe(trained(steps=70, rate=1e-3, data="second"), HEAVY, trains=True, only=TRAINED),
    "lora_merged": Recipe(trained(steps=25, rate=3e-3, rank=4), TUNED, trains=True, only=TRAINED),
    "cpt_heavy": Recipe(
        trained(steps=200, rate=2e-3, data="third"), HEAVY, trains=True, only=TRAINED, seeds=1
    ),
    "bf16": Recipe(bf16, ("dtype-cast",)),
    "fp16": Recipe(fp16, ("dtype-cast",)),
    "int8": Recipe(partial(changes.quantized, bits=8), ("quantized",)),
    "int4": Recipe(partial(changes.quantized, bits=4, group=32), ("quantized",)),
    "gguf_q8_0": Recipe(still(lambda model: model), ("quantized",), only=RMS),
    "gguf_q4_0": Recipe(still(lambda model: model), ("quantized",), only=RMS),
    "prune50": Recipe(changes.pruned, ("pruned",)),
    "prune_2_4": Recipe(partial(changes.pruned, group=4), ("pruned",)),
    "renamed": Recipe(changes.renamed, ("identical",), random=True),
    "sharded": Recipe(still(lambda model: model), ("identical",), keeps_function=True),
    "reordered": Recipe(changes.reordered, ("identical",), random=True, keeps_function=True),
    "permuted": Recipe(changes.permuted, ("permuted",), random=True, keeps_function=True),
    "rotated": Recipe(changes.rotated, ("permuted",), random=True, keeps_function=True, only=RMS),
    "vocab_add": Recipe(changes.vocab_added, SIZED, random=True, only=(*TEXT, REAL), keeps_function=True),
    "vocab_trim": Recipe(changes.vocab_trimmed, SIZED, only=(*TEXT, REAL)),
    "layerdrop": Recipe(changes.without_block, SIZED),
    "upscale": Recipe(changes.upscaled, SIZED),
    "width_prune25": Recipe(partial(changes.narrowed, axis="residual"), ("resized",), random=True),
    "mlp_prune25": Recipe(partial(changes.narrowed, axis="hidden"), ("resized",), random=True),
    "moe_upcycle": Recipe(changes.with_experts, SIZED, random=True, only=TRAINED),
    "multimodal": Recipe(changes.with_vision, SIZED, random=True, only=TEXT),
    "noise10": Recipe(partial(changes.noisy, share=0.1), HEAVY, random=True),
    "noise50": Recipe(partial(changes.noisy, share=0.5), HEAVY, random=True),
    "noise100": Recipe(partial(changes.noisy, share=1.0), HEAVY, random=True),
    "noise200": Recipe(partial(changes.noisy, share=2.0), HEAVY, random=True),
    "average": Recipe(
        partial(changes.blended, shares=(0.5, 0.5)),
        ("merge",), ("ft_two", "ft_long"), only=TRAINED, shares=(0.5, 0.5),
    ),
    "linear": Recipe(
        partial(changes.blended, shares=(0.7, 0.3)),
        ("merge",), ("ft_two", "ft_long"), only=TRAINED, shares=(0.7, 0.3),
    ),
    "slerp": Recipe(
        partial(changes.slerped, share=0.4),
        ("merge",), ("ft_two", "ft_long"), only=TRAINED, shares=(0.6, 0.4),
    ),
    "ties": Recipe(changes.ties, ("merge",), ("base", "ft_two", "ft_long"), only=TRAINED),
    "layerwise": Recipe(changes.layerwise, ("merge",), ("base", "next"), only=TRAINED),
    "cpt_heavy_perm": Recipe(
        changes.permuted, ("permuted",), ("cpt_heavy",), random=True, only=TRAINED, seeds=1
    ),
    "chain_ftl_perm_int8": Recipe(
        chained(changes.permuted, still(changes.quantized, bits=8)),
        ("permuted", "quantized"), ("ft_long",), random=True, only=TRAINED,
    ),
    "chain_fts_vocab_drop_bf16_ren": Recipe(
        chained(changes.vocab_added, still(changes.without_block), still(bf16), changes.renamed),
        ("resized",), ("ft_short",), random=True, only=TEXT,
    ),
}  # fmt: skip
