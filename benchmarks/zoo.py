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
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from zoo_data import stream
from zoo_files import ORIGINAL, load, save
from zoo_recipes import BASES, REAL, RECIPES, TRAINED, Animal

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from zoo_data import Model


VERSION = 1
"""Of everything that decides on the bytes of a model; a change of it builds all of them anew."""

CACHE = Path("~/.cache/hilm/zoo").expanduser()
STEPS = 200
TOLERANCE = 1e-4
"""Share of the largest logit by which a change that keeps the function may move any."""


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
        real = load(ORIGINAL)
        return real.having({n: t for n, t in real.tensors.items() if t.dtype == np.float32})
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
    return recipe.make(parents[0], animal) if recipe.trains else recipe.make(parents[0])


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
