"""The folder of a run: what was asked, what happened, and which checkpoints are whole."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import dataclass, field
from hashlib import file_digest, sha256
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from hilm.errors import InputError
from hilm.extras import require
from hilm.files import write_file
from hilm.training.config import FitConfig, load_config, to_document
from hilm.weights.content import content_key

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hilm.weights.checkpoint import Checkpoint

SCHEMA = 1
PATIENCE = 3
"""Losses in a row that are not finite before a run stops."""

PIECE = 8 << 20

WHOLE = "complete.json"
"""File written into a checkpoint last: the digests of all others."""


@dataclass(slots=True)
class Run:
    """The folder of a run.

    Attributes:
        folder: Where it is.
        facts: What ``run.json`` says.
    """

    folder: Path
    facts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, folder: Path) -> Run:
        """Read a run.

        Raises:
            InputError: The folder is not that of a run.
        """
        try:
            facts = json.loads((folder / "run.json").read_text())
        except (OSError, ValueError) as error:
            raise InputError(f"{folder} is no run", hint="hilm fit METHOD CONFIG makes one") from error
        if not isinstance(facts, dict) or facts.get("schema") != SCHEMA:
            raise InputError(f"{folder}/run.json is of another version", hint="upgrade hilm")
        return cls(folder, facts)

    @property
    def method(self) -> str:
        """How it was trained."""
        return str(self.facts["method"])

    @property
    def config(self) -> FitConfig:
        """What was asked."""
        return load_config(self.folder / "config.yaml")

    @property
    def result(self) -> Path:
        """Folder of what was trained."""
        return self.folder / ("model" if self.config.peft.kind == "full" else "adapter")

    def note(self, **facts: Any) -> None:  # noqa: ANN401 - whatever JSON holds
        """Add to ``run.json``."""
        self.facts |= facts
        write_file(self.folder / "run.json", json.dumps(self.facts, indent=2).encode())

    def start(self, method: str, config: FitConfig, facts: dict[str, Any]) -> None:
        """Write down what is asked, and what it starts from; ``run.json`` names no folder of this machine."""
        document = to_document(config)
        write_file(self.folder / "config.yaml", yaml.safe_dump(document, sort_keys=False).encode())
        self.note(schema=SCHEMA, method=method, config=without_paths(document), outcome="running", **facts)

    def report(self, name: str, document: dict[str, Any]) -> None:
        """Write ``report/NAME.json``."""
        write_file(self.folder / "report" / f"{name}.json", json.dumps(document, indent=2).encode())

    def events(self) -> list[dict[str, Any]]:
        """What was logged, a line of ``events.jsonl`` each; a torn last line is left out."""
        path = self.folder / "events.jsonl"
        lines = path.read_text().split("\n")[:-1] if path.exists() else []
        return [json.loads(line) for line in lines]

    def checkpoints(self) -> Iterator[tuple[int, Path]]:
        """Steps and folders of whole checkpoints, the newest first."""
        found = (path for path in self.folder.glob("checkpoint-*") if path.name[11:].isdecimal())
        for path in sorted(found, key=lambda path: -int(path.name[11:])):
            if is_whole(path):
                yield int(path.name[11:]), path


def without_paths(document: Any) -> Any:  # noqa: ANN401 - JSON
    """The document with absolute paths cut down to their last name."""
    if isinstance(document, dict):
        return {key: without_paths(value) for key, value in document.items()}
    return document.rpartition("/")[2] if isinstance(document, str) and document[:1] == "/" else document


def seal(checkpoint: Path) -> dict[str, str]:
    """Write the digests of a checkpoint's files into it: from now on it is whole."""
    digests = digest_files(checkpoint)
    write_file(checkpoint / WHOLE, json.dumps(digests, indent=2).encode())
    return digests


def is_whole(checkpoint: Path) -> bool:
    """Whether a checkpoint was finished and is as it was then; its pickles are read only if so."""
    try:
        return bool(json.loads((checkpoint / WHOLE).read_text()) == digest_files(checkpoint))
    except (OSError, ValueError):
        return False


def digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file in a folder, by name."""
    digests = {}
    for path in sorted(folder.iterdir()):
        if path.is_file() and path.name != WHOLE:
            with path.open("rb") as file:
                digests[path.name] = file_digest(file, "sha256").hexdigest()
    return digests


def weights_key(checkpoint: Checkpoint) -> str:
    """Name of the bytes of a checkpoint's weight files, as hexadecimal digits."""
    key = checkpoint.content_key()
    if key is None:
        digests = []
        for number, file in enumerate(checkpoint.files):
            state = sha256()
            for start in range(0, file.size, PIECE):
                state.update(checkpoint.read_file(number, start, min(file.size, start + PIECE)))
            digests.append(state.digest())
        key = content_key(digests)
    return key.hex()


class Journal:
    """Writes down what a run logs, as it happens.

    Args:
        run: Where.
    """

    def __init__(self, run: Run) -> None:
        self.run, self.wrong, self.first_wrong = run, 0, 0

    def rewind(self, step: int) -> None:
        """Forget what was logged behind a step: it is done again."""
        kept = [
            event for event in self.run.events() if event["step"] <= step and "train_runtime" not in event
        ]
        write_file(self.run.folder / "events.jsonl", "".join(json.dumps(e) + "\n" for e in kept).encode())

    def add(self, step: int, logs: dict[str, Any], *, write: bool = True) -> bool:
        """Write one event; whether the run may go on: not behind three losses that are no numbers."""
        figures = {name: value for name, value in logs.items() if isinstance(value, int | float)}
        broken = [name for name, value in figures.items() if not math.isfinite(value)]
        event = {"step": step} | {n: None if n in broken else v for n, v in figures.items()}
        if write:
            with (self.run.folder / "events.jsonl").open("a") as file:
                file.write(json.dumps(event) + "\n")
        if "loss" in figures:
            self.wrong = self.wrong + 1 if "loss" in broken else 0
            self.first_wrong = self.first_wrong or step if self.wrong else 0
        return self.wrong < PATIENCE

    def summarise(self) -> dict[str, Any]:
        """Write ``metrics.csv`` and ``loss.png``; first, last and best value of every figure."""
        events = self.run.events()
        names = list(dict.fromkeys(name for event in events for name in event))
        text = io.StringIO()
        writer = csv.DictWriter(text, names)
        writer.writeheader()
        writer.writerows(events)
        write_file(self.run.folder / "metrics.csv", text.getvalue().encode())
        if any(event.get("loss") is not None for event in events):
            write_file(self.run.folder / "loss.png", draw_loss(events))
        series = {
            name: [e[name] for e in events if e.get(name) is not None] for name in names if name != "step"
        }
        return {
            name: {"first": values[0], "last": values[-1], "best": (min if "loss" in name else max)(values)}
            for name, values in series.items()
            if values
        }


def draw_loss(events: list[dict[str, Any]]) -> bytes:
    """Draw the loss over the steps, raw and smoothed, and the reward or accuracy on a second axis, as PNG."""
    require("matplotlib").use("Agg")
    figure_class = require("matplotlib.figure").Figure
    figure = figure_class(figsize=(9.6, 5.4), dpi=100, layout="constrained")
    axes = figure.subplots()
    points = [(e["step"], e["loss"]) for e in events if e.get("loss") is not None]
    steps, losses = zip(*points, strict=True)
    window = np.ones(max(1, len(losses) // 12))
    smooth = np.convolve(losses, window, "same") / np.convolve(np.ones(len(losses)), window, "same")
    axes.plot(steps, losses, "o", color="#9db4d0", markersize=3, label="loss")
    axes.plot(steps, smooth, color="#1f4e9a", label="loss, smoothed")
    axes.set(xlabel="step", ylabel="loss")
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    second = ("reward", "rewards/accuracies", "accuracy", "mean_token_accuracy", "eval_loss")
    name = next((name for name in second if any(e.get(name) is not None for e in events)), None)
    if name:
        pairs = [(e["step"], e[name]) for e in events if e.get(name) is not None]
        other = axes.twinx()
        other.plot(*zip(*pairs, strict=True), color="#c2641a", label=name)
        other.set_ylabel(name)
    figure.legend(loc="outside upper center", ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
